//! The program `mailq`: lists the queue.

fn main() {}
