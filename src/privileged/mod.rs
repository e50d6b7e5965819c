//! The daemon's side of its privileged part (L1): files opened and programs run with users' rights by a process that
//! still has root's, while this one has none.
//!
//! [`Part`] is cheap to share; several requests are under way at once, each over a connection of its own. What may be asked
//! is in [`wire::Request`] and nowhere else; the other side, `programs::privileged_part`, looks at each request again and
//! refuses what no recipient is owed. Trouble with the part itself is always temporary.
//! A user whose files hang (a home on a server that is gone) holds up nobody else: at most [`USER_REQUESTS_MAX`] requests
//! wait for the files of one user, none longer than the time limit, and once one has waited so long, no more are made until
//! it is answered. An answer that comes too late is undone: a lock is given back, a program killed before its input ends.
//! An unlocking or killing for which there is no connection in time is done as soon as there is one: none is lost.
//! A connection that has ended or failed is not used again.
//! Blocks: until the part has answered, or the time limit; call it on the blocking pool. Limits: those of [`wire`],
//! [`CONNECTIONS_MAX`], [`CONNECTIONS_RESERVED`], [`USER_REQUESTS_MAX`], [`WAITERS_MAX`].

pub mod wire;

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::clock::{Clock, SystemClock};
use crate::safe_file::{ReadRequest, Refusal, Text, Who};
use wire::{MaildirFile, Problem, ProgramRequest, Reply, Request, Whose};

/// Requests under way at once.
pub const CONNECTIONS_MAX: usize = 32;
/// Of those, kept for requests that end something: an unlocking, a killing.
pub const CONNECTIONS_RESERVED: usize = 2;
/// Requests under way for the files of one user.
pub const USER_REQUESTS_MAX: usize = 4;
/// Who may wait for a connection while others are not answered in time; more are told at once to come again.
pub const WAITERS_MAX: usize = 16;

/// A file opened by the part.
#[derive(Debug)]
pub struct Opened {
    /// The file, for reading and appending.
    pub file: File,
    /// Its directory, to be synced, if the file is new.
    pub directory: Option<File>,
}

/// A program started by the part.
#[derive(Debug)]
pub struct Started {
    /// Its process id; its session and group have the same number.
    pub process: u32,
    /// Readable when it has ended.
    pub end: OwnedFd,
}

/// The privileged part, as the daemon sees it.
#[derive(Debug)]
pub struct Part {
    connections: Arc<Connections>,
    clock: SystemClock,
    time_limit: Duration,
}

/// The connections to the part, and for whom they are used.
#[derive(Debug)]
struct Connections {
    state: Mutex<State>,
    freed: Condvar,
}

#[derive(Debug)]
struct State {
    idle: Vec<OwnedFd>,
    /// Connections that have not failed, in use or not.
    alive: usize,
    users: HashMap<Whose, UnderWay>,
    late: usize,
    waiting: usize,
    /// Unlockings and killings still to be done; no more than there are locks and programs.
    endings: VecDeque<Request>,
    /// Whether a thread does them.
    is_ending: bool,
}

/// Requests for the files of one user.
#[derive(Debug, Default)]
struct UnderWay {
    asked: usize,
    late: usize,
}

/// Until when an answer is waited for.
struct Deadline<'a> {
    clock: &'a SystemClock,
    at: Duration,
}

impl Deadline<'_> {
    fn left(&self) -> Duration {
        self.at.saturating_sub(self.clock.monotonic())
    }
}

/// A connection that is used for one request.
struct Taken {
    connections: Arc<Connections>,
    socket: OwnedFd,
    whose: Option<Whose>,
}

impl Part {
    /// Talks to the part at the other ends of socket pairs of type `SOCK_SEQPACKET`; waits so long for each answer.
    #[must_use]
    pub fn new(sockets: Vec<OwnedFd>, time_limit: Duration) -> Self {
        Self {
            connections: Arc::new(Connections {
                state: Mutex::new(State {
                    alive: sockets.len(),
                    idle: sockets,
                    users: HashMap::new(),
                    late: 0,
                    waiting: 0,
                    endings: VecDeque::new(),
                    is_ending: false,
                }),
                freed: Condvar::new(),
            }),
            clock: SystemClock::new(),
            time_limit,
        }
    }

    fn ask(
        &self,
        request: &Request,
        files: &[BorrowedFd<'_>],
    ) -> Result<(Reply, Vec<OwnedFd>), Problem> {
        self.ask_keeping(request, files, None)
    }

    /// Asks; an answer that comes too late is undone, and until then `kept` is not closed.
    fn ask_keeping(
        &self,
        request: &Request,
        files: &[BorrowedFd<'_>],
        kept: Option<BorrowedFd<'_>>,
    ) -> Result<(Reply, Vec<OwnedFd>), Problem> {
        let deadline = self.deadline();
        // Before it is asked: without it there is no undoing.
        let kept = kept.map(|file| file.try_clone_to_owned()).transpose()?;
        let taken = Connections::send(&self.connections, request, files, &deadline)?;
        self.answer_over(taken, request, kept, &deadline)
    }

    fn answer_over(
        &self,
        taken: Taken,
        request: &Request,
        kept: Option<OwnedFd>,
        deadline: &Deadline<'_>,
    ) -> Result<(Reply, Vec<OwnedFd>), Problem> {
        // Without knowing, it may yet be answered.
        if !is_answered(&taken.socket, deadline).unwrap_or(false) {
            taken.settle_late(request.clone(), kept);
            let limit = self.time_limit.as_secs_f32();
            return Err(Problem::Words(format!(
                "no answer from the privileged part within {limit} s"
            )));
        }
        match wire::receive(&taken.socket) {
            Ok(Some(answer)) => {
                taken.give_back();
                match answer {
                    (Reply::Refused(problem), _) => Err(problem),
                    answer => Ok(answer),
                }
            }
            Ok(None) => {
                taken.give_up();
                Err(ended())
            }
            Err(error) => {
                taken.give_up();
                Err(error.into())
            }
        }
    }

    /// Has something ended, now or as soon as there is a connection.
    fn end(&self, request: Request) {
        let deadline = self.deadline();
        match Connections::send(&self.connections, &request, &[], &deadline) {
            // Once sent it is done, however late. Trouble is a part that has ended, and has ended this as well.
            Ok(taken) => drop(self.answer_over(taken, &request, None, &deadline)),
            Err(_) => Connections::end_later(&self.connections, request),
        }
    }

    fn deadline(&self) -> Deadline<'_> {
        Deadline {
            clock: &self.clock,
            at: self.clock.monotonic().saturating_add(self.time_limit),
        }
    }

    /// As [`crate::safe_file::read`]; what is let pass the part knows itself.
    ///
    /// # Errors
    /// As there, and temporary trouble with the part.
    pub fn read(&self, request: &ReadRequest<'_>) -> Result<Text, Refusal> {
        let asked = Request::Read {
            path: request.path.to_owned(),
            purpose: request.purpose,
            who: request.who,
        };
        let (reply, mut files) = self.ask(&asked, &[])?;
        let (
            Reply::Text {
                owner,
                is_writable_by_others,
            },
            Some(file),
        ) = (reply, files.pop())
        else {
            return Err(unexpected().into());
        };
        let mut file = File::from(file);
        let mut bytes = Vec::new();
        file.rewind()?;
        file.take(crate::safe_file::READ_BYTES_MAX + 1)
            .read_to_end(&mut bytes)?;
        Ok(Text {
            bytes,
            owner,
            is_writable_by_others,
        })
    }

    /// Opens a file that the configuration names, such as a map or the list of a class, for reading.
    ///
    /// # Errors
    /// The system's, or a refusal.
    pub fn open_named(&self, path: &Path) -> io::Result<File> {
        let path = path.to_owned();
        let (_, mut files) = self.ask(&Request::OpenNamed { path }, &[])?;
        let file = files.pop().ok_or_else(unexpected)?;
        Ok(File::from(file))
    }

    /// As [`crate::safe_file::open_append`].
    ///
    /// # Errors
    /// As there, and temporary trouble with the part.
    pub fn open_append(&self, path: &Path, who: Who) -> Result<Opened, Refusal> {
        let request = Request::Append {
            path: path.to_owned(),
            who,
        };
        Ok(opened(self.ask(&request, &[])?)?)
    }

    /// Opens or makes the mailbox of a user.
    ///
    /// # Errors
    /// The system's, or what is wrong with the mailbox; temporary.
    pub fn mailbox(&self, user: &str) -> io::Result<Opened> {
        let user = user.to_owned();
        Ok(opened(self.ask(&Request::Mailbox { user }, &[])?)?)
    }

    /// Whether the mailbox of a user is still the file of these numbers, and has one name.
    ///
    /// # Errors
    /// Trouble with the part.
    pub fn is_mailbox(&self, user: &str, device: u64, inode: u64) -> io::Result<bool> {
        let request = Request::IsMailbox {
            user: user.to_owned(),
            device,
            inode,
        };
        self.yes_or_no(&request)
    }

    /// Makes the lock file of a user's mailbox; `false` if there is one.
    ///
    /// # Errors
    /// The system's; temporary.
    pub fn lock(&self, user: &str) -> io::Result<bool> {
        let user = user.to_owned();
        self.yes_or_no(&Request::Lock { user })
    }

    /// Removes the lock file of a user's mailbox that [`Part::lock`] made. A part that has ended has removed it.
    pub fn unlock(&self, user: &str) {
        let user = user.to_owned();
        self.end(Request::Unlock { user });
    }

    /// Makes a file in `tmp` of a Maildir, and the Maildir, if it is missing.
    ///
    /// # Errors
    /// The system's; temporary.
    pub fn maildir_file(&self, at: &MaildirFile) -> io::Result<File> {
        let (_, mut files) = self.ask(&Request::MaildirFile(at.clone()), &[])?;
        let file = files.pop().ok_or_else(unexpected)?;
        Ok(File::from(file))
    }

    /// Moves a file of a Maildir from `tmp` to `new`; gives `new`, to be synced.
    ///
    /// # Errors
    /// The system's; temporary.
    pub fn maildir_keep(&self, at: &MaildirFile) -> io::Result<File> {
        let (_, mut files) = self.ask(&Request::MaildirKeep(at.clone()), &[])?;
        let directory = files.pop().ok_or_else(unexpected)?;
        Ok(File::from(directory))
    }

    /// Removes a file in `tmp` of a Maildir; one that stays does no harm.
    pub fn maildir_drop(&self, at: &MaildirFile) {
        let _ = self.ask(&Request::MaildirDrop(at.clone()), &[]);
    }

    /// Runs a program. If that takes too long, `feeding`, the end that its input is written to, stays open until the program
    /// is killed: it must not take an empty message for a whole one.
    ///
    /// # Errors
    /// The system's, or a refusal; temporary.
    pub fn run(
        &self,
        program: ProgramRequest,
        input: &OwnedFd,
        output: &OwnedFd,
        error: Option<&OwnedFd>,
        feeding: Option<BorrowedFd<'_>>,
    ) -> io::Result<Started> {
        let files: Vec<BorrowedFd<'_>> = [Some(input), Some(output), error]
            .into_iter()
            .flatten()
            .map(AsFd::as_fd)
            .collect();
        match self.ask_keeping(&Request::Run(program), &files, feeding)? {
            (Reply::Started { process }, mut files) => Ok(Started {
                process,
                end: files.pop().ok_or_else(unexpected)?,
            }),
            _ => Err(unexpected().into()),
        }
    }

    /// Kills a program that the part has started, and its group.
    pub fn kill(&self, process: u32) {
        // One that has ended needs no killing.
        self.end(Request::Kill { process });
    }

    /// How a program ended: exit code or signal. Call it when [`Started::end`] is readable.
    ///
    /// # Errors
    /// It has not ended, or trouble with the part.
    pub fn reap(&self, process: u32) -> io::Result<(Option<i32>, Option<i32>)> {
        match self.ask(&Request::Reap { process }, &[])? {
            (Reply::Ended { code, signal }, _) => Ok((code, signal)),
            _ => Err(unexpected().into()),
        }
    }

    /// Writes the file with the process id to stop the daemon by; it goes when the daemon ends.
    ///
    /// # Errors
    /// The system's.
    pub fn publish_process(&self) -> io::Result<()> {
        self.ask(&Request::PublishProcess, &[])?;
        Ok(())
    }

    /// Has the daemon started anew when this process has ended.
    pub fn restart(&self) {
        // Without a part there is nobody to do it.
        let _ = self.ask(&Request::Restart, &[]);
    }

    fn yes_or_no(&self, request: &Request) -> io::Result<bool> {
        match self.ask(request, &[])?.0 {
            Reply::Done => Ok(true),
            Reply::No => Ok(false),
            _ => Err(unexpected().into()),
        }
    }
}

impl Connections {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a request over a connection that works.
    fn send(
        this: &Arc<Self>,
        request: &Request,
        files: &[BorrowedFd<'_>],
        deadline: &Deadline<'_>,
    ) -> Result<Taken, Problem> {
        loop {
            let taken = Self::take(this, request, deadline)?;
            match wire::send(&taken.socket, request, files) {
                Ok(()) => return Ok(taken),
                // It was not asked: another connection may do. There is one less each time.
                Err(error) if wire::is_end(&error) => taken.give_up(),
                Err(error) => {
                    taken.give_back();
                    return Err(error.into());
                }
            }
        }
    }

    /// Takes a connection for a request, when there is one and not too much is under way for the same user.
    fn take(
        this: &Arc<Self>,
        request: &Request,
        deadline: &Deadline<'_>,
    ) -> Result<Taken, Problem> {
        let whose = request.whose();
        let reserved = match request.is_ending() {
            true => 0,
            false => CONNECTIONS_RESERVED,
        };
        let busy = || Problem::Words("the privileged part is busy".to_owned());
        let mut state = this.lock();
        let socket = loop {
            let under_way = whose.as_ref().and_then(|whose| state.users.get(whose));
            if let (Some(whose), Some(UnderWay { late: 1.., .. })) = (&whose, under_way) {
                let text = format!("the files of {whose} do not answer");
                return Err(Problem::Words(text));
            }
            if state.alive == 0 {
                return Err(ended());
            }
            let reserved = reserved.min(state.alive - 1);
            let is_users_turn = under_way.is_none_or(|of_user| of_user.asked < USER_REQUESTS_MAX);
            if is_users_turn
                && state.idle.len() > reserved
                && let Some(socket) = state.idle.pop()
            {
                break socket;
            }
            let wait = deadline.left();
            let are_too_many = state.late > 0 && state.waiting >= WAITERS_MAX;
            if wait.is_zero() || (are_too_many && !request.is_ending()) {
                return Err(busy());
            }
            state.waiting += 1;
            state = this
                .freed
                .wait_timeout(state, wait)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
            state.waiting -= 1;
        };
        if let Some(whose) = &whose {
            state.users.entry(whose.clone()).or_default().asked += 1;
        }
        drop(state);
        Ok(Taken {
            connections: Arc::clone(this),
            socket,
            whose,
        })
    }

    /// Does what ends something over the next connection that there is, in a thread that waits for it.
    fn end_later(this: &Arc<Self>, request: Request) {
        let mut state = this.lock();
        state.endings.push_back(request);
        if std::mem::replace(&mut state.is_ending, true) {
            return;
        }
        drop(state);
        let connections = Arc::clone(this);
        let end = move || {
            let clock = SystemClock::new();
            let never = Deadline {
                clock: &clock,
                at: Duration::MAX,
            };
            while let Some(request) = connections.next_ending() {
                let sent = Self::send(&connections, &request, &[], &never);
                // A part that has ended has ended all of it.
                let Ok(taken) = sent else { continue };
                match wire::receive::<Reply>(&taken.socket) {
                    Ok(Some(_)) => taken.give_back(),
                    Ok(None) | Err(_) => taken.give_up(),
                }
            }
        };
        let thread = std::thread::Builder::new().name("late ending".to_owned());
        // As for a late answer: the part then ends it.
        let spawned = thread.spawn(end);
        assert!(spawned.is_ok(), "no thread for a late ending");
    }

    /// The next to be ended; after `None` the thread that asked is no more.
    fn next_ending(&self) -> Option<Request> {
        let mut state = self.lock();
        let next = state.endings.pop_front();
        state.is_ending = next.is_some();
        next
    }

    /// Ends the use of a connection; `None` if it is of no more use.
    fn release(&self, socket: Option<OwnedFd>, whose: Option<Whose>) {
        let mut state = self.lock();
        match socket {
            Some(socket) => state.idle.push(socket),
            None => state.alive -= 1,
        }
        if let Some(whose) = whose
            && let Some(of_user) = state.users.get_mut(&whose)
        {
            of_user.asked -= 1;
            if of_user.asked == 0 {
                state.users.remove(&whose);
            }
        }
        let is_waited_for = state.waiting > 0;
        drop(state);
        if is_waited_for {
            self.freed.notify_all();
        }
    }
}

impl Taken {
    fn give_back(self) {
        let Self {
            connections,
            socket,
            whose,
        } = self;
        connections.release(Some(socket), whose);
    }

    /// Closes a connection that has ended or failed.
    fn give_up(self) {
        self.connections.release(None, self.whose);
    }

    /// Waits for an answer that nobody wants any more, undoes it, and only then gives the connection back.
    fn settle_late(self, request: Request, kept: Option<OwnedFd>) {
        self.count_late(|late| late.saturating_add(1));
        // Who waits for the same user learns of it.
        self.connections.freed.notify_all();
        let settle = move || {
            let answer = wire::receive::<Reply>(&self.socket);
            let mut is_usable = matches!(answer, Ok(Some(_)));
            let undone = match (request, answer) {
                (Request::Lock { user }, Ok(Some((Reply::Done, _)))) => {
                    Some(Request::Unlock { user })
                }
                (Request::Run(_), Ok(Some((Reply::Started { process }, _)))) => {
                    Some(Request::Kill { process })
                }
                (Request::MaildirFile(at), Ok(Some((Reply::Done, _)))) => {
                    Some(Request::MaildirDrop(at))
                }
                _ => None,
            };
            if let Some(request) = undone {
                is_usable = self.undo(&request);
            }
            drop(kept);
            self.count_late(|late| late.saturating_sub(1));
            match is_usable {
                true => self.give_back(),
                false => self.give_up(),
            }
        };
        let thread = std::thread::Builder::new().name("late answer".to_owned());
        // Where there is no thread to be had, the program would rather end than leave a lock behind: the part then
        // undoes all of it.
        let spawned = thread.spawn(settle);
        assert!(spawned.is_ok(), "no thread for a late answer");
    }

    /// Whether the connection still works.
    fn undo(&self, request: &Request) -> bool {
        let ask = |request: &Request| {
            let sent = wire::send(&self.socket, request, &[]);
            let answer = sent.and_then(|()| wire::receive::<Reply>(&self.socket));
            matches!(answer, Ok(Some(_)))
        };
        // Trouble here is a part that has ended, and has undone it.
        match request {
            Request::Kill { process } => ask(request) && ask(&Request::Reap { process: *process }),
            _ => ask(request),
        }
    }

    fn count_late(&self, change: impl Fn(usize) -> usize) {
        let mut state = self.connections.lock();
        state.late = change(state.late);
        if let Some(of_user) = self
            .whose
            .as_ref()
            .and_then(|whose| state.users.get_mut(whose))
        {
            of_user.late = change(of_user.late);
        }
    }
}

/// Waits for an answer until the deadline; whether there is one, or the part has ended.
fn is_answered(socket: &OwnedFd, deadline: &Deadline<'_>) -> io::Result<bool> {
    loop {
        let wait = deadline.left();
        let wait = Timespec::try_from(wait).map_err(io::Error::other)?;
        let mut waited = [PollFd::new(socket, PollFlags::IN)];
        match poll(&mut waited, Some(&wait)) {
            Err(rustix::io::Errno::INTR) => {}
            polled => return Ok(polled? > 0),
        }
    }
}

fn opened((reply, files): (Reply, Vec<OwnedFd>)) -> Result<Opened, Problem> {
    let mut files = files.into_iter();
    match (reply, files.next()) {
        (Reply::Opened { .. }, Some(file)) => Ok(Opened {
            file: File::from(file),
            directory: files.next().map(File::from),
        }),
        _ => Err(unexpected()),
    }
}

fn ended() -> Problem {
    Problem::Words("the privileged part has ended".to_owned())
}

fn unexpected() -> Problem {
    Problem::Words("the privileged part gave no sense".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::safe_file::{Lenience, Purpose};
    use crate::status::Verdict;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap()
    }

    /// A part with so many connections, and their other ends.
    fn part_with(connections: usize, time_limit: Duration) -> (Part, Vec<OwnedFd>) {
        let (ours, theirs) = (0..connections).map(|_| pair()).unzip();
        (Part::new(ours, time_limit), theirs)
    }

    const SHORT: Duration = Duration::from_millis(50);
    const LONG: Duration = Duration::from_secs(60);

    fn is_at(theirs: &[OwnedFd]) -> usize {
        let mut waited: Vec<_> = theirs
            .iter()
            .map(|one| PollFd::new(one, PollFlags::IN))
            .collect();
        poll(&mut waited, None).unwrap();
        waited
            .iter()
            .position(|one| !one.revents().is_empty())
            .unwrap()
    }

    fn answer(socket: &OwnedFd, reply: &Reply) -> Request {
        let (request, _) = wire::receive(socket).unwrap().unwrap();
        wire::send(socket, reply, &[]).unwrap();
        request
    }

    #[test]
    fn without_its_part_everything_waits() {
        let (part, theirs) = part_with(1 + CONNECTIONS_RESERVED, LONG);
        drop(theirs);
        let request = ReadRequest {
            path: Path::new("/home/bob/.forward"),
            purpose: Purpose::Forward,
            who: Some(Who { uid: 7, gid: 7 }),
            lenience: Lenience::default(),
            trusted: None,
        };
        let refusal = part.read(&request).unwrap_err();
        assert_eq!(refusal.verdict(), Verdict::Temporary);
        assert!(!refusal.is_missing());
        assert!(part.mailbox("bob").is_err());
        assert!(part.lock("bob").is_err());
        part.unlock("bob");
        part.kill(1);
    }

    /// A connection that the part had left was given back, and taken again for each request that followed.
    #[test]
    fn a_connection_that_has_ended_or_failed_is_not_used_again() {
        let (part, mut theirs) = part_with(4, LONG);
        let serve_one = |part: &Part, theirs: &[OwnedFd]| {
            std::thread::scope(|scope| {
                let asked = scope.spawn(|| part.is_mailbox("eve", 1, 1));
                answer(&theirs[is_at(theirs)], &Reply::Done);
                asked.join().unwrap().unwrap()
            })
        };
        // One that ends before it is asked costs nothing: the last one is the first to be taken.
        drop(theirs.pop());
        assert!(serve_one(&part, &theirs));
        // One that ends while it is asked, and one that gives no sense.
        std::thread::scope(|scope| {
            let asked = scope.spawn(|| part.is_mailbox("bob", 1, 1));
            let at = is_at(&theirs);
            drop(theirs.remove(at));
            let error = asked.join().unwrap().unwrap_err();
            assert!(error.to_string().contains("has ended"), "{error}");
        });
        std::thread::scope(|scope| {
            let asked = scope.spawn(|| part.is_mailbox("bob", 1, 1));
            let at = is_at(&theirs);
            rustix::net::send(&theirs[at], b"{", rustix::net::SendFlags::empty()).unwrap();
            asked.join().unwrap().unwrap_err();
            // Ours is closed.
            let _ = wire::receive::<Request>(&theirs[at]).unwrap();
            assert!(wire::receive::<Request>(&theirs[at]).unwrap().is_none());
            drop(theirs.remove(at));
        });
        // The last that is left serves, though it was kept for what ends something.
        assert_eq!(theirs.len(), 1);
        assert!(serve_one(&part, &theirs));
        drop(theirs);
        // Then nobody waits.
        let error = part.is_mailbox("eve", 1, 1).unwrap_err();
        assert!(error.to_string().contains("has ended"), "{error}");
    }

    #[test]
    fn a_user_whose_files_hang_holds_up_nobody_else() {
        let (mut part, mut theirs) = part_with(2 + CONNECTIONS_RESERVED, SHORT);
        let error = part.is_mailbox("bob", 1, 1).unwrap_err();
        assert!(error.to_string().starts_with("no answer"), "{error}");
        let bobs = is_at(&theirs);
        let bobs = theirs.swap_remove(bobs);
        part.time_limit = LONG;
        // Once it was not answered, nobody waits for it again.
        let error = part.mailbox("bob").unwrap_err();
        assert_eq!(error.to_string(), "the files of bob do not answer");
        // Others are served over the connections that are left.
        let serve_one = |part: &Part, theirs: &[OwnedFd], user: &str| {
            std::thread::scope(|scope| {
                let asked = scope.spawn(|| part.is_mailbox(user, 1, 1));
                answer(&theirs[is_at(theirs)], &Reply::No);
                asked.join().unwrap().unwrap()
            })
        };
        for _ in 0..3 {
            assert!(!serve_one(&part, &theirs, "eve"));
        }
        // The late answer makes it bob's turn again.
        answer(&bobs, &Reply::No);
        while part.connections.lock().late > 0 {
            std::thread::yield_now();
        }
        theirs.push(bobs);
        assert!(!serve_one(&part, &theirs, "bob"));
    }

    #[test]
    fn what_is_done_too_late_is_undone() {
        let (part, theirs) = part_with(2 + CONNECTIONS_RESERVED, SHORT);
        part.lock("bob").unwrap_err();
        let at = &theirs[is_at(&theirs)];
        answer(at, &Reply::Done);
        let undone = answer(at, &Reply::Done);
        assert_eq!(undone, Request::Unlock { user: "bob".into() });

        let (mut input, feeding) = io::pipe().unwrap();
        let (_, output) = io::pipe().unwrap();
        let program = ProgramRequest {
            path: "/bin/cat".into(),
            arguments: vec!["cat".into()],
            who: Who { uid: 7, gid: 7 },
            login: None,
            directories: Vec::new(),
        };
        let given = input.try_clone().unwrap();
        part.run(
            program,
            &given.into(),
            &output.into(),
            None,
            Some(feeding.as_fd()),
        )
        .unwrap_err();
        drop(feeding);
        rustix::io::ioctl_fionbio(&input, true).unwrap();
        let has_ended = |input: &mut io::PipeReader| match input.read(&mut [0]) {
            Ok(count) => count == 0,
            Err(_) => false,
        };
        assert!(!has_ended(&mut input));
        let at = &theirs[is_at(&theirs)];
        answer(at, &Reply::Started { process: 77 });
        assert_eq!(answer(at, &Reply::Done), Request::Kill { process: 77 });
        // Not before it is dead does the input end.
        assert!(!has_ended(&mut input));
        assert_eq!(answer(at, &Reply::No), Request::Reap { process: 77 });
        rustix::io::ioctl_fionbio(&input, false).unwrap();
        assert!(has_ended(&mut input));
    }

    #[test]
    fn where_all_connections_hang_what_ends_something_gets_through() {
        let (part, theirs) = part_with(2 + CONNECTIONS_RESERVED, SHORT);
        for user in ["bob", "eve"] {
            part.mailbox(user).unwrap_err();
        }
        let error = part.mailbox("kim").unwrap_err();
        assert_eq!(error.to_string(), "the privileged part is busy");
        std::thread::scope(|scope| {
            scope.spawn(|| part.kill(7));
            // The late ones' requests lie where they were sent.
            let mut seen = Vec::new();
            while !seen.contains(&Request::Kill { process: 7 }) {
                let at = is_at(&theirs);
                seen.push(answer(&theirs[at], &Reply::Done));
            }
        });
    }

    /// A home that hangs could take the connections that are kept for unlockings by what drops a file of a Maildir.
    #[test]
    fn dropping_a_file_of_a_home_that_hangs_takes_no_connection_that_is_kept() {
        let (part, theirs) = part_with(2 + CONNECTIONS_RESERVED, SHORT);
        let at = |uid| MaildirFile {
            maildir: "/home/bob/Maildir".into(),
            who: Who { uid, gid: uid },
            name: "1.host".into(),
        };
        // Of one user no more is asked once it was late.
        part.maildir_drop(&at(7));
        part.maildir_drop(&at(7));
        assert_eq!(part.connections.lock().idle.len(), 1 + CONNECTIONS_RESERVED);
        part.maildir_drop(&at(8));
        part.maildir_drop(&at(9));
        assert_eq!(part.connections.lock().idle.len(), CONNECTIONS_RESERVED);
        drop(theirs);
    }

    /// What ended something was lost where no connection came free in time: the lock stayed until a restart.
    #[test]
    fn an_unlocking_for_which_there_is_no_connection_in_time_is_done_later() {
        let (part, theirs) = part_with(2 + CONNECTIONS_RESERVED, SHORT);
        for user in ["bob", "eve"] {
            part.mailbox(user).unwrap_err();
        }
        for process in [1, 2] {
            part.kill(process);
        }
        assert!(part.connections.lock().idle.is_empty());
        part.unlock("kim");
        part.kill(3);
        let mut seen = Vec::new();
        for expected in [
            Request::Unlock { user: "kim".into() },
            Request::Kill { process: 3 },
        ] {
            while !seen.contains(&expected) {
                seen.push(answer(&theirs[is_at(&theirs)], &Reply::Done));
            }
        }
        while part.connections.lock().is_ending {
            std::thread::yield_now();
        }
        assert!(part.connections.lock().endings.is_empty());
    }
}
