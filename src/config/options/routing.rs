//! Where recipients go: aliases, forwarding, tables of addresses and domains, hubs, smart host.
//!
//! A part of the table of options, see [`options`](super). Pure values: nothing is read, nothing blocks.

use super::{OptionDef, host_or_none, shown_host};
use crate::config::dont_blame::DontBlame;
use crate::config::modes::Remote;
use crate::config::value::Access;

pub(super) const ROUTING: &[OptionDef] = &[
    OptionDef::new(
        "alias_file",
        "/etc/mail/aliases",
        Access::Several {
            form: "map specifications",
            separator: Some(','),
            clear: |c| c.route.alias_files.clear(),
            add: |c, text| {
                let spec = c.place_alias_map(text)?;
                c.route.alias_files.push(spec);
                Ok(())
            },
            show: |c| c.route.alias_files.clone(),
        },
        "Alias maps, asked in this order until one knows the name.",
    )
    .named("AliasFile")
    .letter('A')
    .sandbox("etc/mail/aliases"),
    OptionDef::new(
        "virtusertable",
        "",
        Access::Table {
            field: |c| &mut c.route.virtusertable,
            usual: "hash /etc/mail/virtusertable",
        },
        "Addresses of this host's domains to others, as FEATURE(virtusertable): user@domain, @domain and so on.",
    ),
    OptionDef::new(
        "virtuser_domain",
        "",
        Access::Words(|c| &mut c.route.virtuser_domain),
        "Domains that only the virtusertable knows (VIRTUSER_DOMAIN).",
    ),
    OptionDef::new(
        "virtuser_domain_file",
        "",
        Access::PathOrNone(|c| &mut c.route.virtuser_domain_file),
        "Domains that only the virtusertable knows (VIRTUSER_DOMAIN_FILE), one a line.",
    ),
    OptionDef::new(
        "virtuser_entire_domain",
        "false",
        Access::Flag(|c| &mut c.route.virtuser_entire_domain),
        "Whether what is below those domains is virtual, too.",
    ),
    OptionDef::new(
        "mailertable",
        "",
        Access::Table {
            field: |c| &mut c.route.mailertable,
            usual: "hash /etc/mail/mailertable",
        },
        "Domains of other hosts to MAILER:HOST, as FEATURE(mailertable).",
    ),
    OptionDef::new(
        "domaintable",
        "",
        Access::Table {
            field: |c| &mut c.route.domaintable,
            usual: "hash /etc/mail/domaintable",
        },
        "Domains to others, in the envelope and in headers, as FEATURE(domaintable).",
    ),
    OptionDef::new(
        "redirect",
        "false",
        Access::Flag(|c| &mut c.route.redirect),
        "Whether mail for USER@DOMAIN.REDIRECT is answered that the user is now USER@DOMAIN.",
    ),
    OptionDef::new(
        "luser_relay",
        "",
        Access::SentOn(|c| &mut c.route.sent_on.luser_relay),
        "Where mail for names of this host goes that nobody has (LUSER_RELAY).",
    ),
    OptionDef::new(
        "mail_hub",
        "",
        Access::SentOn(|c| &mut c.route.sent_on.mail_hub),
        "Where mail for names of this host that are no aliases goes (MAIL_HUB).",
    ),
    OptionDef::new(
        "local_relay",
        "",
        Access::SentOn(|c| &mut c.route.sent_on.local_relay),
        "The same if there is no mail_hub (LOCAL_RELAY).",
    ),
    OptionDef::new(
        "stickyhost",
        "false",
        Access::Flag(|c| &mut c.route.sent_on.stickyhost),
        "Whether USER@DOMAIN of this host goes to mail_hub with its domain, and never to local_relay.",
    ),
    OptionDef::new(
        "local_user",
        "",
        Access::Words(|c| &mut c.route.sent_on.local_user),
        "Names that neither mail_hub nor local_relay gets (LOCAL_USER).",
    ),
    OptionDef::new(
        "smart_host",
        "",
        Access::Form {
            form: "host, [host] or [address], with or without :port, and with or without esmtp: or relay: before it; empty for none",
            set: |c, text| {
                c.route.smart_host = host_or_none(text)?;
                Ok(())
            },
            show: |c| shown_host(c.route.smart_host.as_ref()),
        },
        "Where all mail for other hosts is sent, instead of by MX.",
    ),
    OptionDef::new(
        "remote",
        "true",
        Access::Form {
            form: "true or false",
            set: |c, text| {
                let remote = match text.trim().to_ascii_lowercase().as_str() {
                    "true" | "yes" => Remote::Allowed,
                    "false" | "no" => Remote::LoopbackOnly,
                    _ => return Err(format!("`{text}' is not true or false")),
                };
                c.route.remote = remote;
                c.deliver.remote = remote;
                Ok(())
            },
            show: |c| (c.route.remote == Remote::Allowed).to_string(),
        },
        "Whether hosts beyond loopback are contacted; if not, mail for them waits.",
    )
    .sandbox("false"),
    OptionDef::new(
        "forward_path",
        "$z/.forward.$w+$h:$z/.forward+$h:$z/.forward.$w:$z/.forward",
        Access::Several {
            form: "absolute paths with $z, $u, $w, $j, $h, separated by colons; empty for none",
            separator: Some(':'),
            clear: |c| c.route.forward_path.clear(),
            add: |c, text| {
                c.route.forward_path.push(forward_template(text)?);
                Ok(())
            },
            show: |c| c.route.forward_path.clone(),
        },
        "Where users' forwarding files are looked for, in this order: $z home, $u user, $h what stood after a plus sign.",
    )
    .named("ForwardPath")
    .letter('J'),
    OptionDef::new(
        "shells_file",
        "/etc/shells",
        Access::Path(|c| &mut c.route.shells),
        "Users with one of these shells may have programs run and files written, in a sandbox all; /SENDMAIL/ANY/SHELL/ in it stands for all.",
    )
    .sandbox("etc/shells"),
    OptionDef::new(
        "dont_blame_sendmail",
        "safe",
        Access::Several {
            form: "safe, ClassFileInUnsafeDirPath, DontWarnForwardFileInUnsafeDirPath, \
                   FileDeliveryToHardLink, FileDeliveryToSymLink, ForwardFileInGroupWritableDirPath, \
                   ForwardFileInUnsafeDirPath, ForwardFileInUnsafeDirPathSafe, GroupWritableAliasFile, \
                   GroupWritableDirPathSafe, GroupWritableForwardFile, GroupWritableForwardFileSafe, \
                   GroupWritableIncludeFile, GroupWritableIncludeFileSafe, \
                   IncludeFileInGroupWritableDirPath, IncludeFileInUnsafeDirPath, \
                   IncludeFileInUnsafeDirPathSafe, LinkedClassFileInWritableDir, \
                   LinkedForwardFileInWritableDir, LinkedIncludeFileInWritableDir, LinkedMapInWritableDir, \
                   MapInUnsafeDirPath, TrustStickyBit, WorldWritableAliasFile, WorldWritableForwardFile, \
                   WorldWritableIncludeFile",
            separator: Some(','),
            clear: |c| c.route.dont_blame = DontBlame::default(),
            add: |c, text| c.route.dont_blame.add(text),
            show: |c| c.route.dont_blame.names(),
        },
        "Files that others could change, or put in place, and that are used all the same.",
    )
    .named("DontBlameSendmail"),
    OptionDef::new(
        "max_alias_recursion",
        "10",
        Access::Count {
            field: |c| &mut c.route.max_alias_recursion,
            min: 1,
            max: 100,
        },
        "How deep aliases may lead to aliases.",
    )
    .named("MaxAliasRecursion"),
    OptionDef::new(
        "max_hop_count",
        "25",
        Access::Form {
            form: "number, 1 to 200",
            set: |c, text| {
                let hops = text
                    .trim()
                    .parse()
                    .ok()
                    .filter(|hops| (1..=200).contains(hops))
                    .ok_or_else(|| format!("`{text}' is not a number from 1 to 200"))?;
                c.route.max_hop_count = hops;
                c.smtpd.limits.max_hop_count = hops;
                Ok(())
            },
            show: |c| c.route.max_hop_count.to_string(),
        },
        "Hops after which a message is taken to loop.",
    )
    .named("MaxHopCount")
    .letter('h'),
];

/// A path of `forward_path`: absolute, with macros that exist.
fn forward_template(text: &str) -> Result<String, String> {
    let text = text.trim();
    if !text.starts_with('/') && !text.starts_with("$z/") {
        return Err(format!(
            "`{text}' is not an absolute path, nor one that begins with $z"
        ));
    }
    for (at, _) in text.match_indices('$') {
        let name = text.get(at + 1..at + 2).unwrap_or_default();
        if !["z", "u", "w", "j", "h"].contains(&name) {
            return Err(format!(
                "`${name}' in `{text}' is not one of $z $u $w $j $h"
            ));
        }
    }
    Ok(text.to_owned())
}
