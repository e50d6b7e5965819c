//! What `--help`, `--version` and `-d0` print.

use std::fmt::Write as _;

use crate::config::host::HostName;

/// The version of this program.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The answer to `--help`.
pub const HELP: &str = "\
usage: sendmail [flags] [recipient ..]

  -bm  send the message on standard input (default)   -bd  SMTP server in the background
  -bs  SMTP on standard input and output              -bD  SMTP server in the foreground
  -bp  list the queue (mailq)                         -bi  rebuild the aliases (newaliases)
  -bv  say where recipients lead                      -bC  check the configuration

  -t          take recipients from the header         -i          a lone dot does not end the message
  -f ADDRESS  sender                                  -F NAME     full name of the sender
  -v          show the dialogue                       -h N        hops made so far
  -N WHEN     report on success, failure, delay       -R full|hdrs  what a report returns
  -V ID       envelope id                             -B 7BIT|8BITMIME  type of the body
  -G          relayed by a gateway                    -L TAG      name in the log
  -Ac, -Am    submission program, transfer agent      -C FILE     configuration file
  -oX[VALUE], -O NAME=VALUE  set an option: see sendmail.toml(5)

  -q          run the queue now                       -qTIME      run it every TIME
  -q[!]ISUB, -q[!]RSUB, -q[!]SSUB  only messages whose id, recipient or sender has SUB in it
  -qQ[SUB]    only quarantined messages               -Q[REASON]  quarantine them, or with no reason release

  --sandbox DIR   keep everything in DIR, which is made on first use
  --check-config  check the configuration             --print-config  show every option
  --version       print the version                   --help      print this
";

/// The answer to `--version`.
#[must_use]
pub fn version() -> String {
    format!("Diligence {VERSION}\n")
}

/// What `-d0.1` prints, in Sendmail's form.
#[must_use]
pub fn identity(host: &HostName) -> String {
    let mut text = format!("Version {VERSION}\n\n");
    let domain = host.full.split_once('.').map_or("", |(_, domain)| domain);
    // Writing to a String cannot fail.
    let _ = write!(
        text,
        "============ SYSTEM IDENTITY (after readcf) ============\n      \
         (short domain name) $w = {}\n  (canonical domain name) $j = {}\n         \
         (subdomain name) $m = {domain}\n              (node name) $k = {}\n\
         ========================================================\n\n",
        host.short(),
        host.full,
        host.short(),
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_identity_is_printed_in_sendmails_form() {
        let host = HostName {
            full: "gold.example.test".to_owned(),
            aliases: Vec::new(),
        };
        let text = identity(&host);
        assert!(text.starts_with(&format!("Version {VERSION}\n")));
        for line in [
            "      (short domain name) $w = gold\n",
            "  (canonical domain name) $j = gold.example.test\n",
            "         (subdomain name) $m = example.test\n",
            "              (node name) $k = gold\n",
        ] {
            assert!(text.contains(line), "{text}");
        }
    }

    #[test]
    fn help_fits_a_terminal_and_names_every_mode_that_works() {
        assert!(HELP.lines().all(|line| line.len() <= 110));
        for flag in ["-bm", "-bs", "-bd", "-bD", "-bp", "-bi", "-bv", "--sandbox"] {
            assert!(HELP.contains(flag), "{flag}");
        }
    }
}
