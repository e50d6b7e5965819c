//! Files and Maildirs that many messages wait for at once: batches lose nothing, mix nothing, and hold no place.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use diligence::config::mailer::MailerDefinition;
use diligence::deliver::{Destination, Mailers, Place};
use diligence::envelope::{Delivery, Outcome};

use crate::setup::{attempt, mailers, options};

const MESSAGES: usize = 300;

/// Delivers messages with these subjects at once, and gives what became of them.
async fn deliver_all(mailers: &Mailers, destination: Destination, to: &str) -> Vec<Outcome> {
    let mut tasks = Vec::new();
    for number in 0..MESSAGES {
        let (mailers, destination) = (mailers.clone(), destination.clone());
        let content = format!("Subject: no. {number}\r\n\r\n{}\r\n", "x".repeat(2000));
        let attempt = attempt(&[to], content.as_bytes());
        tasks.push(tokio::spawn(async move {
            mailers.attempt(&destination, attempt).await
        }));
    }
    let mut outcomes = Vec::new();
    for task in tasks {
        outcomes.extend(task.await.unwrap().into_iter().map(|(_, outcome)| outcome));
    }
    assert_eq!(outcomes.len(), MESSAGES);
    outcomes
}

fn subjects<'a>(texts: impl Iterator<Item = &'a str>) -> BTreeSet<String> {
    texts
        .filter_map(|line| line.strip_prefix("Subject: "))
        .map(str::to_owned)
        .collect()
}

/// Mailers that put local mail into this Maildir.
fn with_maildir(folder: &Path) -> Mailers {
    let mut options = options(folder);
    let maildir = folder.join("Maildir");
    let text = format!("md, P=[MAILDIR], F=l, A=MAILDIR {}", maildir.display());
    options.named.local = Some("md".to_owned());
    options
        .named
        .mailers
        .push(MailerDefinition::parse(&text).unwrap());
    mailers(options)
}

fn names_in(folder: &Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_gets_every_message_whole() {
    let folder = tempfile::tempdir().unwrap();
    let mut patient = options(folder.path());
    patient.mailboxes.lock_wait_max = Duration::from_secs(60);
    let path = folder.path().join("archive");
    let mailers = mailers(patient);
    let to = path.display().to_string();
    for outcome in deliver_all(&mailers, Destination::Files, &to).await {
        assert_eq!((&*outcome.text, &*outcome.mailer), ("Sent", "*file*"));
    }
    let text = fs::read_to_string(&path).unwrap();
    assert_eq!(
        text.matches("From alice@gold.example.test ").count(),
        MESSAGES
    );
    assert_eq!(
        text.matches(&format!("\n\n{}\n\n", "x".repeat(2000)))
            .count(),
        MESSAGES
    );
    assert_eq!(subjects(text.lines()).len(), MESSAGES);
}

#[tokio::test]
async fn what_waits_for_a_file_takes_no_place() {
    struct Held(Arc<AtomicBool>);
    impl Drop for Held {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let mut patient = options(folder.path());
    patient.mailboxes.lock_wait_max = Duration::from_secs(60);
    let mailers = mailers(patient);
    let path = folder.path().join("archive");
    let file = fs::File::create(&path).unwrap();
    file.lock().unwrap();
    let is_free = Arc::new(AtomicBool::new(false));
    let mut waiting = attempt(&[&path.display().to_string()], b"Subject: s\r\n\r\nx\r\n");
    waiting.place = Place::new(Held(Arc::clone(&is_free)));
    let task = tokio::spawn(async move { mailers.attempt(&Destination::Files, waiting).await });
    let freed = async {
        while !is_free.load(Ordering::SeqCst) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), freed)
        .await
        .unwrap();
    assert!(!task.is_finished());
    file.unlock().unwrap();
    assert_eq!(task.await.unwrap()[0].1.text, "Sent");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_maildir_gets_every_message_in_a_file_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let mailers = with_maildir(folder.path());
    for outcome in deliver_all(&mailers, Destination::Mailbox, "nosuchuser").await {
        assert_eq!((&*outcome.text, &*outcome.mailer), ("Sent", "local"));
    }
    let maildir = folder.path().join("Maildir");
    assert_eq!(names_in(&maildir.join("tmp")).len(), 0);
    let texts: Vec<String> = names_in(&maildir.join("new"))
        .iter()
        .map(|path| fs::read_to_string(path).unwrap())
        .collect();
    assert_eq!(texts.len(), MESSAGES);
    assert!(texts.iter().all(|text| {
        text.starts_with("Return-Path: <alice@gold.example.test>\nSubject: ")
            && text.ends_with(&format!("\n\n{}\n", "x".repeat(2000)))
    }));
    assert_eq!(
        subjects(texts.iter().flat_map(|text| text.lines())).len(),
        MESSAGES
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_maildir_that_takes_nothing_makes_all_wait_and_keeps_no_leftovers() {
    let folder = tempfile::tempdir().unwrap();
    let mailers = with_maildir(folder.path());
    let maildir = folder.path().join("Maildir");
    for name in ["tmp", "cur", "elsewhere"] {
        fs::create_dir_all(maildir.join(name)).unwrap();
    }
    symlink(maildir.join("elsewhere"), maildir.join("new")).unwrap();
    for outcome in deliver_all(&mailers, Destination::Mailbox, "nosuchuser").await {
        assert_eq!(outcome.result, Delivery::Deferred);
        let why = "a folder of the Maildir is a symbolic link";
        assert!(outcome.text.ends_with(why), "{}", outcome.text);
    }
    for name in ["tmp", "elsewhere"] {
        assert_eq!(names_in(&maildir.join(name)).len(), 0, "{name}");
    }
    // A name in the way of the folder: what was written is taken away again.
    fs::remove_file(maildir.join("new")).unwrap();
    fs::write(maildir.join("new"), "").unwrap();
    for outcome in deliver_all(&mailers, Destination::Mailbox, "nosuchuser").await {
        assert_eq!(outcome.result, Delivery::Deferred, "{}", outcome.text);
    }
    assert_eq!(names_in(&maildir.join("tmp")).len(), 0);
}
