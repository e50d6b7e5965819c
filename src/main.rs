//! The program `sendmail`, also run as `mailq`, `newaliases` and the like.

fn main() {}
