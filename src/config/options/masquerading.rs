//! What others see instead of names of this host: masquerading and the genericstable.
//!
//! A part of the table of options, see [`options`](super). Pure values: nothing is read, nothing blocks.

use super::OptionDef;
use crate::config::access::AddedDomain;
use crate::config::value::Access;

pub(super) const MASQUERADING: &[OptionDef] = &[
    OptionDef::new(
        "masquerade_as",
        "",
        Access::Domain(|c| &mut c.route.masquerade.masquerade_as),
        "The domain that others see instead of this host's names (MASQUERADE_AS).",
    ),
    OptionDef::new(
        "masquerade_domain",
        "",
        Access::Words(|c| &mut c.route.masquerade.domains.words),
        "Further domains that masquerade_as is shown for (MASQUERADE_DOMAIN).",
    ),
    OptionDef::new(
        "masquerade_domain_file",
        "",
        Access::PathOrNone(|c| &mut c.route.masquerade.domains.file),
        "A file with such domains, one a line (MASQUERADE_DOMAIN_FILE).",
    ),
    OptionDef::new(
        "masquerade_exception",
        "",
        Access::Words(|c| &mut c.route.masquerade.exceptions.words),
        "Domains that are never replaced, and what is below them (MASQUERADE_EXCEPTION).",
    ),
    OptionDef::new(
        "masquerade_exception_file",
        "",
        Access::PathOrNone(|c| &mut c.route.masquerade.exceptions.file),
        "A file with such domains, one a line (MASQUERADE_EXCEPTION_FILE).",
    ),
    OptionDef::new(
        "exposed_user",
        "",
        Access::Words(|c| &mut c.route.masquerade.exposed_users.words),
        "Users whose host is shown nevertheless (EXPOSED_USER).",
    ),
    OptionDef::new(
        "exposed_user_file",
        "",
        Access::PathOrNone(|c| &mut c.route.masquerade.exposed_users.file),
        "A file with such users, one a line (EXPOSED_USER_FILE).",
    ),
    OptionDef::new(
        "masquerade_entire_domain",
        "false",
        Access::Flag(|c| &mut c.route.masquerade.scope.masquerade_entire_domain),
        "Whether what is below the domains of masquerade_domain is masqueraded, too.",
    ),
    OptionDef::new(
        "masquerade_envelope",
        "false",
        Access::Flag(|c| &mut c.route.masquerade.scope.masquerade_envelope),
        "Whether envelope senders are rewritten, too, by masquerade_as and genericstable.",
    ),
    OptionDef::new(
        "allmasquerade",
        "false",
        Access::Flag(|c| &mut c.route.masquerade.scope.allmasquerade),
        "Whether recipients in headers are rewritten, too.",
    ),
    OptionDef::new(
        "limited_masquerade",
        "false",
        Access::Flag(|c| &mut c.route.masquerade.scope.limited_masquerade),
        "Whether this host's own names are kept unless masquerade_domain has them.",
    ),
    OptionDef::new(
        "local_no_masquerade",
        "false",
        Access::Flag(|c| &mut c.route.masquerade.scope.local_no_masquerade),
        "Whether mail delivered on this host is left as it is.",
    ),
    OptionDef::new(
        "always_add_domain",
        "true",
        Access::Form {
            form: "true, false or a domain name",
            set: |c, text| {
                c.route.masquerade.always_add_domain = AddedDomain::parse(text)?;
                Ok(())
            },
            show: |c| c.route.masquerade.always_add_domain.show(),
        },
        "Whether names without a domain get this host's, or the domain given, in mail delivered on this host; for other hosts they always get one.",
    ),
    OptionDef::new(
        "genericstable",
        "",
        Access::Table {
            field: |c| &mut c.route.masquerade.genericstable,
            usual: "hash /etc/mail/genericstable",
        },
        "Users of this host to the addresses that others see, as FEATURE(genericstable).",
    ),
    OptionDef::new(
        "generics_domain",
        "",
        Access::Words(|c| &mut c.route.masquerade.generics_domains.words),
        "Domains whose addresses genericstable is asked for (GENERICS_DOMAIN).",
    ),
    OptionDef::new(
        "generics_domain_file",
        "",
        Access::PathOrNone(|c| &mut c.route.masquerade.generics_domains.file),
        "A file with such domains, one a line (GENERICS_DOMAIN_FILE).",
    ),
    OptionDef::new(
        "generics_entire_domain",
        "false",
        Access::Flag(|c| &mut c.route.masquerade.scope.generics_entire_domain),
        "Whether genericstable is asked for what is below those domains, too.",
    ),
];
