//! Ways to accept a message durably: the spool, one file a message, two files a message.
//!
//! In all of them a message is gone again soon after it was accepted (steady state), and what accepts returns only
//! when the message would survive a power cut.

use std::fs::File;
use std::future::Future;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{JoinHandle, Thread};
use std::time::Duration;

use diligence::address::ReversePath;
use diligence::clock::SystemClock;
use diligence::envelope::{Delivery, Envelope, Outcome, Recipient, RecipientId};
use diligence::spool::{Lease, Spool, SpoolOptions, Update};
use diligence::status::Status;

use super::disk::{BenchStorage, Disk, Room};

/// One way to accept a message durably.
pub(crate) trait Accept: Sync {
    /// Returns when the message is durable. Another message may have been removed meanwhile.
    fn accept(&self, content: &[u8]);
    /// Flushes so far.
    fn syncs(&self) -> u64;
}

/// The envelope that all messages have: one recipient.
pub(crate) fn envelope() -> Envelope {
    Envelope::new(ReversePath::Null, vec![Recipient::new("bob@lab.test")])
}

/// The spool, with its writer on a thread.
pub(crate) struct Journal {
    /// For what a bench does besides accepting.
    pub(crate) spool: Spool,
    disk: Arc<Disk>,
    writer: Option<JoinHandle<()>>,
}

impl Journal {
    /// A new spool in a folder, its first segment made. Files get their room as said.
    pub(crate) fn open(folder: &Path, disk: &Arc<Disk>, room: Room, options: SpoolOptions) -> Self {
        let storage = BenchStorage::open(folder, disk, room);
        let clock = Arc::new(SystemClock::new());
        let (spool, writer, _) = Spool::open(storage, clock, options).expect("the spool opens");
        let journal = Self {
            spool,
            disk: Arc::clone(disk),
            writer: Some(std::thread::spawn(move || writer.run())),
        };
        journal.accept(b"the first waits until a segment is made");
        journal
    }

    /// Accepts a message in pieces, as they come from the network, and waits for room between them.
    pub(crate) fn accept_stream(&self, pieces: &mut dyn Iterator<Item = &[u8]>) {
        let mut transaction = self.spool.begin().expect("the spool accepts");
        for piece in pieces {
            block_on(transaction.room());
            transaction
                .append_content(piece)
                .expect("the spool takes content");
        }
        let id = transaction.commit(envelope()).wait();
        self.deliver(self.lease(id.expect("the commit is durable")));
    }

    fn lease(&self, id: diligence::envelope::MessageId) -> Lease {
        self.spool
            .lease_message(id, Duration::from_secs(60))
            .expect("nobody else leases it")
    }

    /// Records the delivery, which removes the message in the next batch.
    fn deliver(&self, lease: Lease) {
        let sent = Outcome::new(Delivery::Delivered, Status::OK, "local", "Sent");
        let update = Update {
            outcomes: vec![(RecipientId(0), sent)],
            ..Update::default()
        };
        drop(self.spool.finish(lease, update).expect("the lease stands"));
    }
}

impl Accept for Journal {
    fn accept(&self, content: &[u8]) {
        let mut transaction = self.spool.begin().expect("the spool accepts");
        transaction
            .append_content(content)
            .expect("the spool takes content");
        let id = transaction.commit(envelope()).wait();
        self.deliver(self.lease(id.expect("the commit is durable")));
    }

    fn syncs(&self) -> u64 {
        self.disk.syncs()
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.spool.close();
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

/// One file a message: written, synced, and its folder synced.
pub(crate) struct FilePerMessage {
    folder: PathBuf,
    handle: File,
    disk: Arc<Disk>,
    next: AtomicU64,
}

impl FilePerMessage {
    /// In a folder of its own.
    pub(crate) fn open(folder: &Path, disk: &Arc<Disk>) -> Self {
        Self {
            folder: folder.to_owned(),
            handle: File::open(folder).expect("the folder opens"),
            disk: Arc::clone(disk),
            next: AtomicU64::new(0),
        }
    }

    fn write(&self, path: &Path, bytes: &[u8]) {
        let mut file = File::create_new(path).expect("the name is new");
        file.write_all(bytes).expect("the disk has room");
        self.disk
            .flush(|| file.sync_all())
            .expect("the file is synced");
    }

    fn sync_folder(&self) {
        self.disk
            .flush(|| self.handle.sync_all())
            .expect("the folder is synced");
    }
}

impl Accept for FilePerMessage {
    fn accept(&self, content: &[u8]) {
        let name = self.next.fetch_add(1, Ordering::Relaxed).to_string();
        let path = self.folder.join(name);
        self.write(&path, content);
        self.sync_folder();
        std::fs::remove_file(&path).expect("the file is there");
    }

    fn syncs(&self) -> u64 {
        self.disk.syncs()
    }
}

/// Two files a message, as Sendmail has them: content, then the envelope under another name until it is synced.
pub(crate) struct TwoFilesPerMessage(pub(crate) FilePerMessage);

/// About what a qf file has for one recipient.
const ENVELOPE_BYTES: usize = 400;

impl Accept for TwoFilesPerMessage {
    fn accept(&self, content: &[u8]) {
        let files = &self.0;
        let number = files.next.fetch_add(1, Ordering::Relaxed);
        let [data, temporary, queue] =
            ["df", "tf", "qf"].map(|kind| files.folder.join(format!("{kind}{number}")));
        files.write(&data, content);
        files.write(&temporary, &[b'V'; ENVELOPE_BYTES]);
        std::fs::rename(&temporary, &queue).expect("the envelope gets its name");
        files.sync_folder();
        std::fs::remove_file(&queue).expect("the envelope is there");
        std::fs::remove_file(&data).expect("the content is there");
    }

    fn syncs(&self) -> u64 {
        self.0.disk.syncs()
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Waits for a future by blocking the thread.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(value) => return value,
            Poll::Pending => std::thread::park(),
        }
    }
}
