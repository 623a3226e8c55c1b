//! The commands of one client read that travel together to one shard, and where their replies go.

use kvorum_cluster::BASE_LEVEL;
use kvorum_keyspace::argv::{self, Malformed};
use kvorum_keyspace::{ArgVec, Args, Command, Run, Sink, Slot, lookup};
use std::any::Any;
use std::time::Duration;

/// Receives the replies of a [`Batch`], one per command and in order.
pub trait ReplySink: Sink + Any + Send {
    /// One reply: the slot is no longer owned by this shard (a redirection, in the server's words).
    fn not_served(&mut self, slot: Slot);
    /// Where the next reply will start.
    fn mark(&self) -> usize;
    /// Takes back every reply since `mark`: the batch has to be served another way.
    fn rewind(&mut self, mark: usize);
    /// Whether it wants no more replies for now. A batch of reads ends early then, after at least one command: who gave it sees by
    /// the replies how far it came.
    fn is_full(&self) -> bool {
        false
    }
    /// A command that runs for at least this long is [`slow`](ReplySink::slow); `None` when nobody wants to know.
    fn slow_after(&self) -> Option<Duration> {
        None
    }
    /// This command ran for so long, the log and the majority apart.
    fn slow(&mut self, _command: &'static Command, _args: Args<'_>, _took: Duration) {}
}

/// Commands of one connection for one shard, in order. A write so large that it goes through the log in chunks (see
/// [`NodeConfig::chunk_bytes`](crate::NodeConfig::chunk_bytes)) can only be the last one.
///
/// The arguments of all commands lie packed in one buffer, in the form the log holds them.
#[derive(Default, Debug)]
pub struct Batch {
    packed: Vec<u8>,
    items: Vec<Item>,
    writes: usize,
    untouching: bool,
}

#[derive(Clone, Copy, Debug)]
struct Item {
    command: &'static Command,
    db: u16,
    end: usize,
}

/// One command of a [`Batch`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct BatchItem<'a> {
    pub(crate) command: &'static Command,
    pub(crate) db: u16,
    /// The command and its arguments as the log holds them.
    pub(crate) packed: &'a [u8],
}

impl<'a> BatchItem<'a> {
    pub(crate) fn argv(&self) -> Result<ArgVec<'a>, Malformed> {
        argv::unpack(&mut { self.packed })
    }

    /// The least feature level of an entry that holds the command.
    fn level(&self) -> u16 {
        let level_with = self.command.level_with.and_then(|level| Some(level(&self.argv().ok()?)));
        level_with.unwrap_or(self.command.level)
    }
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Batch {
        Batch::default()
    }

    /// Its reads are no uses of their keys: CLIENT NO-TOUCH.
    pub fn leave_untouched(&mut self, untouching: bool) {
        self.untouching = untouching;
    }

    pub(crate) fn touches(&self) -> bool {
        !self.untouching
    }

    /// Appends a command; `argv[0]` is its name. The command must be a read or a write of the keyspace.
    pub fn push<'a>(
        &mut self,
        command: &'static Command,
        db: u16,
        argv: impl ExactSizeIterator<Item = &'a [u8]>,
    ) {
        argv::pack(&mut self.packed, argv);
        self.writes += usize::from(command.is_write());
        self.items.push(Item { command, db, end: self.packed.len() });
    }

    /// All commands as the log holds them, one behind the other.
    pub(crate) fn packed(&self) -> &[u8] {
        &self.packed
    }

    /// The batch of which [`Batch::packed`] is left, for one database.
    pub(crate) fn unpack(packed: &[u8], db: u16) -> Result<Batch, Malformed> {
        let mut batch = Batch::new();
        let mut rest = packed;
        while !rest.is_empty() {
            let argv = argv::unpack(&mut rest)?;
            let command = argv.first().and_then(|name| lookup(name)?.resolve(&argv).ok()).ok_or(Malformed)?;
            if matches!(command.run, Run::Server) || command.check_arity(&argv).is_err() {
                return Err(Malformed);
            }
            batch.push(command, db, argv.iter().copied());
        }
        Ok(batch)
    }

    /// Number of commands.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether there is no command.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Number of commands that may change the keyspace.
    pub fn writes(&self) -> usize {
        self.writes
    }

    /// Bytes of all commands together.
    pub fn size_bytes(&self) -> usize {
        self.packed.len()
    }

    /// The least feature level of an entry with the writes of the batch.
    pub(crate) fn level(&self) -> u16 {
        let writes = self.iter().filter(|item| item.command.is_write());
        writes.map(|item| item.level()).max().unwrap_or(BASE_LEVEL)
    }

    /// The last command, if it is a write of more than `chunk_bytes`.
    pub(crate) fn large(&self, chunk_bytes: usize) -> Option<BatchItem<'_>> {
        let last = self.item(self.len().checked_sub(1)?);
        (last.command.is_write() && last.packed.len() > chunk_bytes).then_some(last)
    }

    pub(crate) fn item(&self, n: usize) -> BatchItem<'_> {
        let start = if n == 0 { 0 } else { self.items[n - 1].end };
        let Item { command, db, end } = self.items[n];
        BatchItem { command, db, packed: &self.packed[start..end] }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = BatchItem<'_>> {
        (0..self.len()).map(|n| self.item(n))
    }

    /// The commands as the server pushed them: for routing again what was given back.
    pub fn commands(&self) -> impl Iterator<Item = (&'static Command, ArgVec<'_>)> {
        self.iter().map(|item| (item.command, item.argv().expect("a batch holds what it packed itself")))
    }
}
