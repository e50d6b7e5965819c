//! The options that Sendmail has and this program does not honour.
//!
//! They are known, so that they are refused by name with what to do instead,
//! not called unknown and never ignored. A value that asks for what is done
//! anyway (`SuperSafe=True`) is accepted, because it is honoured.
//!
//! Source: Installation and Operation Guide 5.6, of Sendmail 8.17.

use super::options::fold;

/// An option of Sendmail's that is not honoured.
#[derive(Debug)]
pub struct NotHonoured {
    /// Sendmail's long name.
    pub name: &'static str,
    /// Sendmail's letter.
    pub letter: Option<char>,
    /// Values that ask for what is done anyway, and are therefore accepted.
    accepted: &'static [&'static str],
    /// What to do instead; may be empty.
    pub advice: &'static str,
}

impl NotHonoured {
    const fn letter(mut self, letter: char) -> Self {
        self.letter = Some(letter);
        self
    }

    const fn accepts(mut self, accepted: &'static [&'static str]) -> Self {
        self.accepted = accepted;
        self
    }

    const fn advice(mut self, advice: &'static str) -> Self {
        self.advice = advice;
        self
    }

    /// Whether `value` asks for what is done anyway.
    #[must_use]
    pub fn is_accepted(&self, value: &str) -> bool {
        let value = value.trim();
        self.accepted
            .iter()
            .any(|known| known.eq_ignore_ascii_case(value))
    }
}

const fn not(name: &'static str) -> NotHonoured {
    NotHonoured {
        name,
        letter: None,
        accepted: &[],
        advice: "",
    }
}

const TRUE: &[&str] = &["", "true", "t", "yes", "y", "1"];
const FALSE: &[&str] = &["false", "f", "no", "n", "0"];
const EITHER: &[&str] = &[
    "", "true", "t", "yes", "y", "1", "false", "f", "no", "n", "0",
];
const ZERO: &[&str] = &["0", "0s", "0m", "0h", "0d"];

/// All of them, in the order of Sendmail's names: options, then FEATUREs.
pub static NOT_HONOURED: &[NotHonoured] = &[
    not("AliasWait")
        .letter('a')
        .accepts(&["0", "10", "10m"])
        .advice("alias maps are replaced whole and never waited for"),
    not("AuthMaxBits"),
    not("AuthMechanisms"),
    not("AuthOptions"),
    not("AuthRealm"),
    not("AutoRebuildAliases")
        .letter('D')
        .accepts(FALSE)
        .advice("run newaliases"),
    not("BlankSub").letter('B').accepts(&[".", ""]),
    not("CACertFile"),
    not("CACertPath"),
    not("CertFingerprintAlgorithm"),
    not("CheckAliases").letter('n').accepts(FALSE),
    not("CheckpointInterval")
        .letter('C')
        .accepts(&["0", "1"])
        .advice("every outcome is recorded when it happens"),
    not("CipherList"),
    not("CipherSuites"),
    not("ClassFactor").letter('z'),
    not("ClientCertFile"),
    not("ClientKeyFile"),
    not("ClientPortOptions"),
    not("ClientSSLOptions"),
    not("ColonOkInAddr").accepts(TRUE),
    not("ConnectOnlyTo").advice("use remote = false"),
    not("ConnectionCacheSize").letter('k'),
    not("ConnectionCacheTimeout").letter('K'),
    not("ConnectionRateWindowSize"),
    not("CRLFile"),
    not("CRLPath"),
    not("DANE").accepts(FALSE),
    not("DHParameters"),
    not("DataFileBufferSize"),
    not("DeadLetterDrop"),
    not("DefaultAuthInfo"),
    not("DefaultCharSet"),
    not("DelayLA"),
    not("DeliverByMin"),
    not("DialDelay").accepts(ZERO),
    not("DirectSubmissionModifiers"),
    not("DontExpandCnames"),
    not("DontInitGroups").accepts(FALSE),
    not("DontProbeInterfaces").accepts(EITHER),
    not("DontPruneRoutes").letter('R'),
    not("EightBitMode").letter('8').accepts(&["pass8", "p"]),
    not("ErrorHeader").letter('E').accepts(&[""]),
    not("FallbackMXhost").letter('V'),
    not("FallBackSmartHost"),
    not("FastSplit"),
    not("ForkEachJob")
        .letter('Y')
        .accepts(EITHER)
        .advice("no process is forked for a queue run"),
    not("HelpFile").letter('H'),
    not("HoldExpensive").letter('c').accepts(FALSE),
    not("HostStatusDirectory").accepts(&[""]),
    not("HostsFile").accepts(&["/etc/hosts"]),
    not("InputMailFilters").accepts(&[""]),
    not("LDAPDefaultSpec"),
    not("MailboxDatabase").accepts(&["pw"]),
    not("MatchGECOS").letter('G').accepts(FALSE),
    not("MaxForwardEntries")
        .accepts(ZERO)
        .advice("an expansion is bounded as a whole"),
    not("MaxMimeHeaderLength"),
    not("MaxQueueRunSize").accepts(ZERO),
    not("MaxRunnersPerQueue"),
    not("MeToo").letter('m').accepts(TRUE),
    not("Milter"),
    not("MustQuoteChars"),
    not("NiceQueueRun"),
    not("NoRecipientAction").accepts(&["none"]),
    not("OldStyleHeaders").letter('o').accepts(EITHER),
    not("OpenSSLCnf"),
    not("OperatorChars"),
    not("ProcessTitlePrefix"),
    not("QueueFactor").letter('q'),
    not("QueueLA").letter('x'),
    not("QueueSortOrder"),
    not("QueueTimeout").advice("use Timeout.queuereturn and Timeout.queuewarn"),
    not("RandFile"),
    not("RecipientFactor").letter('y'),
    not("RefuseLA").letter('X'),
    not("RejectLogInterval"),
    not("RejectNUL"),
    not("RequiresDirfsync")
        .accepts(TRUE)
        .advice("directories are always synced"),
    not("ResolverOptions")
        .letter('I')
        .advice("use resolver and the options of resolv.conf"),
    not("RetryFactor").letter('Z'),
    not("RrtImpliesDsn").accepts(FALSE),
    not("SafeFileEnvironment").accepts(&["", "/"]),
    not("SaveFromLine").letter('f').accepts(FALSE),
    not("SendMimeErrors").letter('j').accepts(TRUE),
    not("ServerCertFile"),
    not("ServerKeyFile"),
    not("ServerSSLOptions"),
    not("ServiceSwitchFile"),
    not("SevenBitInput").letter('7').accepts(FALSE),
    not("SharedMemoryKey").accepts(ZERO),
    not("SharedMemoryKeyFile"),
    not("SingleLineFromHeader").accepts(FALSE),
    not("SingleThreadDelivery").accepts(FALSE),
    not("SMTPUTF8").accepts(FALSE),
    not("SoftBounce").accepts(FALSE),
    not("SSLEngine"),
    not("SSLEnginePath"),
    not("StatusFile").letter('S').accepts(&[""]),
    not("SuperSafe")
        .letter('s')
        .accepts(&[
            "",
            "true",
            "t",
            "yes",
            "y",
            "1",
            "postmilter",
            "interactive",
        ])
        .advice("no message is acknowledged before it is durable"),
    not("TempFileMode").letter('F'),
    not("Timeout")
        .letter('r')
        .advice("name the one you mean, as Timeout.command"),
    not("Timeout.aconnect").accepts(ZERO),
    not("Timeout.auth"),
    not("Timeout.control"),
    not("Timeout.hoststatus"),
    not("Timeout.ident").accepts(ZERO),
    not("Timeout.lhlo"),
    not("Timeout.misc").advice("Timeout.command governs every command"),
    not("Timeout.queuereturn.dsn"),
    not("Timeout.queuereturn.non-urgent"),
    not("Timeout.queuereturn.normal").advice("use Timeout.queuereturn"),
    not("Timeout.queuereturn.urgent"),
    not("Timeout.queuewarn.dsn"),
    not("Timeout.queuewarn.non-urgent"),
    not("Timeout.queuewarn.normal").advice("use Timeout.queuewarn"),
    not("Timeout.queuewarn.urgent"),
    not("Timeout.resolver.retrans.first"),
    not("Timeout.resolver.retrans.normal").advice("use Timeout.resolver.retrans"),
    not("Timeout.resolver.retry.first"),
    not("Timeout.resolver.retry.normal").advice("use Timeout.resolver.retry"),
    not("Timeout.starttls"),
    not("TimeZoneSpec").letter('t').accepts(&[""]),
    not("TLSFallbacktoClear"),
    not("TLSSrvOptions"),
    not("TrustedUser"),
    not("TryNullMXList").letter('w').accepts(FALSE),
    not("UnixFromLine").letter('U'),
    not("UnsafeGroupWrites").accepts(TRUE),
    not("UseCompressedIPv6Addresses").accepts(TRUE),
    not("UseErrorsTo").letter('l').accepts(FALSE),
    not("UseMSP").advice("-Ac and -Am tell the two programs apart"),
    not("UserDatabaseSpec"),
    not("XscriptFileBufferSize"),
    // FEATUREs and defines of the m4 configuration.
    not("badmx"),
    not("bcc"),
    not("bestmx_is_local").advice("name the domains in local_host_names"),
    not("bitdomain"),
    not("block_bad_helo").accepts(FALSE),
    not("canonify_domain").advice("addresses are never rewritten by DNS"),
    not("canonify_domain_file").advice("addresses are never rewritten by DNS"),
    not("compat_check"),
    not("domainmap"),
    not("ldap_routing").advice("use virtusertable and mailertable of class ldap"),
    not("ldaproute_domain").advice("use virtusertable and mailertable of class ldap"),
    not("local_lmtp").advice("define a mailer with F=z and name it in local_mailer"),
    not("local_procmail").advice("define a mailer and name it in local_mailer"),
    not("mtamark"),
    not("no_default_msa").advice("name the ports in daemon_port_options"),
    not("nocanonify")
        .accepts(TRUE)
        .advice("addresses are never rewritten by DNS"),
    not("nopercenthack")
        .accepts(FALSE)
        .advice("user%host is always user@host"),
    not("notsticky").accepts(TRUE).advice("use stickyhost"),
    not("nouucp").advice("host!user is always user@host"),
    not("nullclient").advice("use smart_host and mail_hub"),
    not("prefixmod"),
    not("preserve_local_plus_detail").accepts(FALSE),
    not("preserve_luser_host").accepts(FALSE),
    not("queuegroup"),
    not("require_rdns").accepts(FALSE),
    not("rhsbl").advice("use dnsbl"),
    not("smrsh").advice("name it in local_shell"),
    not("sts").accepts(FALSE),
    not("tls_failures").accepts(FALSE),
    not("tls_session_features").accepts(FALSE),
    not("use_client_ptr").accepts(FALSE),
    not("use_ct_file")
        .accepts(TRUE)
        .advice("trusted_users is always read"),
    not("use_cw_file")
        .accepts(TRUE)
        .advice("local_host_names is always read"),
    not("uucpdomain"),
    not("uucp_relay"),
    not("bitnet_relay"),
    not("decnet_relay"),
    not("fax_relay"),
];

/// The option of this name (case and underscores aside), if Sendmail has it and
/// this program does not honour it.
#[must_use]
pub fn by_name(name: &str) -> Option<&'static NotHonoured> {
    let folded = fold(name);
    NOT_HONOURED
        .iter()
        .find(|option| fold(option.name) == folded)
        .or_else(|| {
            // Every option of a filter: Milter.LogLevel, Milter.macros.connect.
            folded
                .starts_with("milter.")
                .then(|| NOT_HONOURED.iter().find(|option| option.name == "Milter"))
                .flatten()
        })
}

/// The option of this letter, likewise.
#[must_use]
pub fn by_letter(letter: char) -> Option<&'static NotHonoured> {
    NOT_HONOURED
        .iter()
        .find(|option| option.letter == Some(letter))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_done_anyway_is_accepted_and_the_contrary_is_not() {
        let supersafe = by_name("SuperSafe").unwrap();
        assert!(supersafe.is_accepted("True"));
        assert!(!supersafe.is_accepted("False"));
        assert!(by_letter('m').unwrap().is_accepted(""));
        assert!(!by_letter('c').unwrap().is_accepted(""));
        assert!(!by_name("TrustedUser").unwrap().is_accepted("smmsp"));
    }

    #[test]
    fn names_are_found_without_regard_to_case() {
        assert!(by_name("supersafe").is_some());
        assert!(by_name("Milter.LogLevel").is_some());
        assert!(by_name("NoSuchOption").is_none());
        assert!(by_letter('!').is_none());
    }
}
