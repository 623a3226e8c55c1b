//! One replica of a shard: its data and what its log says the shard is.
//!
//! Contract: state and reply depend on the log alone. Ownership of slots is checked here, beside the data, for
//! every command applied and for every read; the caller holds one lock around each call, and that lock is what makes
//! "owned" and "read" one moment.
//!
//! Left out: who leads, when to tick, how replies reach a client.

mod assembly;
mod snapshot;

use crate::{Configure, Entry, EntryError, Header, Mode, Part, SplitMix64};
use assembly::Assembly;
use kvorum_keyspace::{
    Args, Command, Error, Flags, Keyspace, Run, Settings, Sink, Slot, argv, lookup, slot_of,
};
pub use snapshot::{RestoreError, ShardSnapshot};
use std::collections::VecDeque;

/// The state machine of one replica.
#[derive(Debug)]
pub struct ShardMachine {
    applied: Option<u64>,
    term: u64,
    clock_ms: u64,
    configuration: Option<Configure>,
    keyspace: Keyspace,
    /// The last few, ascending.
    notes: VecDeque<Note>,
    /// A large write of this term that is not complete yet.
    assembly: Option<Assembly>,
    stopped: bool,
    /// It was restored and has applied nothing since.
    #[cfg(feature = "bugs")]
    restored: bool,
}

/// What a replica's checksum was at one place of the log: the same on every replica, or one of them is wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Note {
    /// Index of the entry whose [`Part::Check`] this is.
    pub index: u64,
    /// The checksum after everything before it in the log.
    pub checksum: u64,
}

/// How many notes a replica keeps.
const NOTES: usize = 16;

/// Who watches the commands of an entry: the leader, for the replies. Followers pass [`Unwitnessed`].
///
/// For each command of an entry, in order: [`sink`](Witness::sink) is called, then either the command's one reply
/// goes to that sink, or [`refused`](Witness::refused) is called and the sink gets nothing.
pub trait Witness {
    /// Where the reply of the `n`-th command of the entry goes, counted from 0. It has not run yet: `before` is the
    /// shard at this place of the log, for reads that stand before the command.
    fn sink(&mut self, n: usize, before: &ShardMachine) -> &mut dyn Sink;

    /// The `n`-th command was not run and has no reply.
    fn refused(&mut self, n: usize, refusal: Refusal);

    /// Who runs a [lengthy](Command::is_lengthy) command: calls what it is given, once.
    fn runner(&self) -> fn(&mut dyn FnMut()) {
        |work| work()
    }
}

/// Nobody waits for the replies: what followers apply with.
pub use kvorum_keyspace::NullSink as Unwitnessed;

impl Witness for Unwitnessed {
    fn sink(&mut self, _: usize, _: &ShardMachine) -> &mut dyn Sink {
        self
    }

    fn refused(&mut self, _: usize, _: Refusal) {}
}

/// Why a command was not run. It is definite: nothing was changed and nothing was replied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// The shard does not own this slot.
    NotOwner(Slot),
    /// The read met a key whose deadline has passed by the reader's clock and not yet by the log's. Read again when
    /// the log's clock has reached this time, in milliseconds since the epoch.
    WaitForClock(u64),
    /// The shard's log does not say yet what the shard is, or the replica has stopped.
    NotConfigured,
    /// Not all chunks of the command came in the term in which it was to run: another leader came between.
    Incomplete,
}

impl Default for ShardMachine {
    fn default() -> ShardMachine {
        ShardMachine::new()
    }
}

impl ShardMachine {
    /// A replica at the beginning of its log: it owns nothing until the log configures it.
    pub fn new() -> ShardMachine {
        ShardMachine {
            applied: None,
            term: 0,
            clock_ms: 0,
            configuration: None,
            keyspace: Keyspace::new(Settings { databases: 1, hash_seed: [0; 16] }),
            notes: VecDeque::new(),
            assembly: None,
            stopped: false,
            #[cfg(feature = "bugs")]
            restored: false,
        }
    }

    /// Applies the entry at `index`, the one after [`applied`](Self::applied) (0 is the first). On an error the
    /// replica has stopped: it may have applied a part of the entry, so it refuses everything from here on.
    pub fn apply(
        &mut self,
        index: u64,
        term: u64,
        entry: &[u8],
        witness: &mut dyn Witness,
    ) -> Result<(), EntryError> {
        #[cfg(feature = "bugs")]
        if std::mem::take(&mut self.restored) && kvorum_bugs::has(kvorum_bugs::Bug::AppliedTwice) {
            self.apply_parts(index, entry, &mut Unwitnessed)?;
        }
        let result = self.enter(index, term).and_then(|()| self.apply_parts(index, entry, witness));
        self.settle(index, term, result)
    }

    /// Passes an entry that is Raft's own: the no-op of a new leader, a change of members.
    pub fn advance(&mut self, index: u64, term: u64) -> Result<(), EntryError> {
        let result = self.enter(index, term);
        self.settle(index, term, result)
    }

    /// Stops the replica: its state is not what its log makes it. From here on it refuses everything.
    pub fn stop(&mut self) {
        self.stopped = true;
    }

    /// Runs a read against the state as it is. `now_ms` is the leader's own clock, or the log's on a follower. The
    /// reply, a command's error included, goes to `out`; on a refusal `out` is untouched.
    ///
    /// `command` is a read and `args` fit its arity.
    pub fn read(
        &self,
        db: u16,
        now_ms: u64,
        command: &Command,
        args: Args<'_>,
        out: &mut dyn Sink,
    ) -> Result<(), Refusal> {
        self.read_touching(true, db, now_ms, command, args, out)
    }

    /// The same; unless it `touches`, it is no use of the keys.
    pub fn read_touching(
        &self,
        touches: bool,
        db: u16,
        now_ms: u64,
        command: &Command,
        args: Args<'_>,
        out: &mut dyn Sink,
    ) -> Result<(), Refusal> {
        let Run::Read(run) = command.run else { panic!("'{}' is no read", command.name) };
        self.check_ownership(command, args)?;
        if db >= self.keyspace.databases() {
            out.error(b"ERR DB index is out of range");
            return Ok(());
        }
        // A reply cannot be taken back from `out`. When some key may be in doubt, a first run without a reply finds
        // out whether this command meets one; that is rare, and costs a second run only then.
        #[cfg(feature = "bugs")]
        if kvorum_bugs::has(kvorum_bugs::Bug::LocalExpiry) {
            if let Err(error) = run(&self.keyspace.reader(db, now_ms, now_ms), args, out) {
                out.error(error.text());
            }
            return Ok(());
        }
        let doubt = now_ms > self.clock_ms && self.next_deadline().is_some_and(|deadline| deadline <= now_ms);
        if doubt {
            let reader = self.keyspace.reader(db, self.clock_ms, now_ms).untouching();
            // An error of the command is found again below.
            let _ = run(&reader, args, &mut Unwitnessed);
            if let Some(clock_ms) = reader.waits_for() {
                return Err(Refusal::WaitForClock(clock_ms));
            }
        }
        let reader = self.keyspace.reader(db, self.clock_ms, now_ms);
        let reader = if touches { reader } else { reader.untouching() };
        if let Err(error) = run(&reader, args, out) {
            out.error(error.text());
        }
        Ok(())
    }

    /// The log's clock: the largest of the entries so far, in milliseconds since the epoch; 0 before the first.
    pub fn clock_ms(&self) -> u64 {
        self.clock_ms
    }

    /// Index of the last entry applied; `None` before the first.
    pub fn applied(&self) -> Option<u64> {
        self.applied
    }

    /// Term of the last entry applied; 0 before the first.
    pub fn term(&self) -> u64 {
        self.term
    }

    /// What the shard is; `None` until its log says so.
    pub fn configured(&self) -> Option<&Configure> {
        self.configuration.as_ref()
    }

    /// The data.
    pub fn keyspace(&self) -> &Keyspace {
        &self.keyspace
    }

    /// Checksum over everything that was done to the data: two replicas that have applied the same log have the same,
    /// and replicas that differ in what they did have different ones.
    pub fn checksum(&self) -> u64 {
        self.keyspace.checksum()
    }

    /// What the checksum was at the last few [`Part::Check`]s, ascending by index.
    pub fn notes(&self) -> impl DoubleEndedIterator<Item = Note> + '_ {
        self.notes.iter().copied()
    }

    /// The last of the [`notes`](Self::notes).
    pub fn noted(&self) -> Option<Note> {
        self.notes.back().copied()
    }

    /// Whether the shard owns a slot.
    pub fn owns(&self, slot: Slot) -> bool {
        !self.stopped
            && self
                .configuration
                .as_ref()
                .is_some_and(|is| is.mode == Mode::Standalone || is.slots.contains(slot))
    }

    /// The earliest deadline of any key, in milliseconds since the epoch.
    pub fn next_deadline(&self) -> Option<u64> {
        self.keyspace.next_deadline()
    }

    fn enter(&mut self, index: u64, term: u64) -> Result<(), EntryError> {
        self.check_position(index, term)?;
        if term > self.term {
            // Who began to send it does not lead any more.
            self.assembly = None;
        }
        Ok(())
    }

    fn check_position(&self, index: u64, term: u64) -> Result<(), EntryError> {
        let expected = self.applied.map_or(0, |applied| applied + 1);
        if self.stopped {
            Err(EntryError::Stopped)
        } else if index != expected {
            Err(EntryError::IndexGap { expected, got: index })
        } else if term < self.term {
            Err(EntryError::TermWentBack { term: self.term, got: term })
        } else {
            Ok(())
        }
    }

    fn settle(&mut self, index: u64, term: u64, result: Result<(), EntryError>) -> Result<(), EntryError> {
        match result {
            Ok(()) => {
                self.applied = Some(index);
                self.term = term;
            }
            Err(_) => self.stopped = true,
        }
        result
    }

    fn apply_parts(&mut self, index: u64, bytes: &[u8], witness: &mut dyn Witness) -> Result<(), EntryError> {
        let entry = Entry::decode(bytes)?;
        let header = entry.header;
        // A leader that was deposed and elected again may propose before it has applied what came in between, with a
        // clock behind that. Such an entry happens at the time of the entry before it.
        self.clock_ms = self.clock_ms.max(header.clock_ms);
        let mut seeds = SplitMix64::new(header.seed);
        let mut n = 0;
        for part in entry.parts() {
            match part? {
                Part::Command { db, argv } => {
                    self.apply_command(n, db, &argv, header, seeds.draw(), witness)?;
                    n += 1;
                }
                Part::Configure(configure) => self.configure(configure)?,
                Part::Tick { limit } => {
                    self.keyspace.expire_due(self.clock_ms, usize::try_from(limit).unwrap_or(usize::MAX));
                }
                Part::Check => self.note(index),
                Part::Chunk { offset, total, bytes } => {
                    let so_far = self.assembly.take();
                    self.assembly = Assembly::follow(so_far, offset, total, bytes);
                }
                Part::Assembled { db, total } => {
                    let assembly = self.assembly.take();
                    match assembly.and_then(|assembly| assembly.complete(total)) {
                        Some(command) => {
                            let mut packed = command.as_slice();
                            let argv = argv::unpack(&mut packed).map_err(|_| EntryError::NoCommand)?;
                            if !packed.is_empty() {
                                return Err(EntryError::NoCommand);
                            }
                            self.apply_command(n, db, &argv, header, seeds.draw(), witness)?;
                        }
                        None => {
                            seeds.draw();
                            witness.sink(n, self);
                            witness.refused(n, Refusal::Incomplete);
                        }
                    }
                    n += 1;
                }
            }
        }
        Ok(())
    }

    fn note(&mut self, index: u64) {
        let note = Note { index, checksum: self.checksum() };
        match self.notes.back_mut() {
            // A second one in the same entry.
            Some(last) if last.index == index => *last = note,
            _ => self.notes.push_back(note),
        }
        if self.notes.len() > NOTES {
            self.notes.pop_front();
        }
    }

    fn apply_command(
        &mut self,
        n: usize,
        db: u16,
        args: Args<'_>,
        header: Header,
        seed: u64,
        witness: &mut dyn Witness,
    ) -> Result<(), EntryError> {
        let name = || String::from_utf8_lossy(args[0]).into_owned();
        let command = lookup(args[0])
            .and_then(|command| command.resolve(args).ok())
            .ok_or_else(|| EntryError::UnknownCommand(name()))?;
        let Run::Write(run) = command.run else { return Err(EntryError::NotAWrite(name())) };
        command.check_arity(args).map_err(|_| EntryError::WrongArity(name()))?;

        let runner = command.is_lengthy().then(|| witness.runner());
        let sink = witness.sink(n, self);
        if let Err(refusal) = self.check_ownership(command, args) {
            witness.refused(n, refusal);
            return Ok(());
        }
        if db >= self.keyspace.databases() {
            return Err(EntryError::UnknownDatabase(db));
        }
        let outcome = if header.out_of_memory && command.flags.has(Flags::DENYOOM) {
            Err(OUT_OF_MEMORY)
        } else {
            let mut writer = self.keyspace.writer(db, self.clock_ms, seed);
            match runner {
                None => run(&mut writer, args, sink),
                Some(runner) => {
                    let mut outcome = Ok(());
                    runner(&mut || outcome = run(&mut writer, args, sink));
                    outcome
                }
            }
        };
        if let Err(error) = outcome {
            sink.error(error.text());
        }
        Ok(())
    }

    fn configure(&mut self, new: Configure) -> Result<(), EntryError> {
        let Some(old) = &self.configuration else {
            self.keyspace = Keyspace::new(Settings { databases: new.databases, hash_seed: new.hash_seed });
            self.configuration = Some(new);
            return Ok(());
        };
        if new.version <= old.version {
            return Ok(());
        }
        let constant = |is: &Configure| (is.shard, is.group, is.mode, is.databases, is.hash_seed);
        if constant(&new) != constant(old) {
            return Err(EntryError::Reconfigured { version: new.version });
        }
        self.configuration = Some(new);
        Ok(())
    }

    fn check_ownership(&self, command: &Command, args: Args<'_>) -> Result<(), Refusal> {
        if self.stopped || self.configuration.is_none() {
            return Err(Refusal::NotConfigured);
        }
        #[cfg(feature = "bugs")]
        if kvorum_bugs::has(kvorum_bugs::Bug::OwnershipAtRoutingOnly) {
            return Ok(());
        }
        let mut foreign = None;
        command.for_each_key(args, &mut |key| {
            let slot = slot_of(key);
            if foreign.is_none() && !self.owns(slot) {
                foreign = Some(slot);
            }
        });
        foreign.map_or(Ok(()), |slot| Err(Refusal::NotOwner(slot)))
    }

    /// Bytes of a large write that has come in part.
    pub fn assembling_bytes(&self) -> u64 {
        self.assembly.as_ref().map_or(0, Assembly::len)
    }
}

const OUT_OF_MEMORY: Error = Error::new("OOM command not allowed when used memory > 'maxmemory'.");
