//! The table of one slot: a tree of hash bits over [segments](segment::Segment).
//!
//! A small slot is a single segment. A larger one is a branch, a directory of up to 256 entries by up to 8 bits of
//! the hash, whose children are segments or, below full directories, branches again. A full segment is split by
//! the next bit, two small ones are joined: growing and shrinking never touch more than a segment and a directory.
//! Everything sits behind reference counts and is copied when it is shared, so a clone of a table is the clone of
//! its root, and a write to one of the two copies the segments it touches, nothing else.
//!
//! In hash order a table is walked from any hash on: cursors survive growth.

mod access;
mod chunks;
mod segment;

use crate::value::{Form, Value};
pub use access::AccessClock;
pub use segment::Record;
use segment::{MAX_RECORDS, Segment};
pub(crate) use segment::{NewRecord, Timing};
use siphasher::sip::SipHasher13;
use std::hash::Hasher;
use triomphe::Arc;

/// The hash of keys: SipHash-1-3 under the cluster's secret seed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hash(SipHasher13);

impl Hash {
    pub(crate) fn new(seed: &[u8; 16]) -> Hash {
        Hash(SipHasher13::new_with_key(seed))
    }

    pub(crate) fn of(&self, key: &[u8]) -> u64 {
        let mut hasher = self.0;
        hasher.write(key);
        hasher.finish()
    }
}

/// The keys of one slot.
#[derive(Clone, Default, Debug)]
pub(crate) struct Table {
    root: Node,
}

#[derive(Clone, Default, Debug)]
enum Node {
    #[default]
    Empty,
    Leaf(Arc<Segment>),
    Branch(Arc<Branch>),
}

/// Bits of the hash that one branch consumes.
const BRANCH_BITS: u32 = 8;

/// From here on segments are not split any more: so many equal bits mean equal hashes.
const MAX_BITS: u32 = 56;

/// Two neighbours are joined when both together are at most this many records.
const JOIN_RECORDS: usize = MAX_RECORDS / 2;

#[derive(Clone, Debug)]
struct Branch {
    /// The directory has `1 << bits` entries.
    bits: u32,
    /// The child for each value of the next `bits` bits.
    directory: Vec<u8>,
    children: Vec<Child>,
}

#[derive(Clone, Debug)]
struct Child {
    /// How many of the branch's bits all its keys share; 8 where the child is a branch.
    depth: u32,
    node: Node,
}

impl Table {
    pub(crate) fn get(&self, key: &[u8], hash: u64) -> Option<Record<'_>> {
        let segment = self.segment(hash)?;
        segment.find(key, hash).map(|cell| segment.record(cell))
    }

    /// A key of this hash with this deadline.
    pub(crate) fn key_due(&self, keys: &Hash, hash: u64, deadline_ms: u64) -> Option<&[u8]> {
        let segment = self.segment(hash)?;
        segment
            .candidates(hash)
            .filter(|&cell| segment.record(cell).deadline_ms == Some(deadline_ms))
            .map(|cell| segment.key(cell))
            .find(|key| keys.of(key) == hash)
    }

    /// Stores a record, whether the key is there or not. `before` sees what was there.
    pub(crate) fn put<T>(
        &mut self,
        keys: &Hash,
        key: &[u8],
        hash: u64,
        record: NewRecord<'_>,
        before: impl FnOnce(Option<Record<'_>>) -> T,
    ) -> T {
        let mut segment = self.root.segment_mut(keys, hash, 0, false);
        if let Some(cell) = segment.find(key, hash) {
            let seen = before(Some(segment.record(cell)));
            segment.replace(cell, record);
            return seen;
        }
        if segment.is_full() {
            segment = self.root.segment_mut(keys, hash, 0, true);
        }
        segment.insert(key, hash, record);
        before(None)
    }

    /// Gives a key that is there another sequence and deadline.
    pub(crate) fn retime(&mut self, keys: &Hash, key: &[u8], hash: u64, timing: Timing) {
        let segment = self.root.segment_mut(keys, hash, 0, false);
        let cell = segment.find(key, hash).expect("the caller has seen the key");
        segment.retime(cell, segment.record(cell).form, timing);
    }

    /// Changes a string that is there where it lies when it is a big one; else does nothing and says so. It gets
    /// another sequence; its deadline stays.
    pub(crate) fn edit_big(
        &mut self,
        keys: &Hash,
        key: &[u8],
        hash: u64,
        sequence: u64,
        edit: impl FnOnce(&mut Vec<u8>),
    ) -> bool {
        let segment = self.root.segment_mut(keys, hash, 0, false);
        let Some(cell) = segment.find(key, hash) else { return false };
        let deadline_ms = segment.record(cell).deadline_ms;
        match segment.big_value_mut(cell) {
            Some(Value::String(bytes)) => edit(Arc::make_mut(bytes)),
            None => return false,
        }
        segment.retime(cell, Form::Edited, Timing { sequence, deadline_ms });
        true
    }

    /// The value of a key when it is a big one.
    pub(crate) fn big(&self, key: &[u8], hash: u64) -> Option<Value> {
        let segment = self.segment(hash)?;
        segment.big_value(segment.find(key, hash)?).cloned()
    }

    /// Some key and its record, chosen by a random number: of a segment that the number finds, any with the same
    /// chance. Segments hold much the same number of keys. `None` where the number finds nothing.
    pub(crate) fn random(&self, number: u64) -> Option<(&[u8], Record<'_>)> {
        let segment = self.segment(number)?;
        let cell = usize::try_from(number.checked_rem(segment.len() as u64)?).ok()?;
        Some((segment.key(cell), segment.record(cell)))
    }

    /// Removes a key that is there.
    pub(crate) fn remove(&mut self, keys: &Hash, key: &[u8], hash: u64) {
        let segment = self.root.segment_mut(keys, hash, 0, false);
        let cell = segment.find(key, hash).expect("the caller has seen the key");
        segment.remove(cell);
        if segment.len() < JOIN_RECORDS / 2 {
            self.root.shrink(hash, 0);
        }
    }

    /// Calls `visit` with hash, key and record of all keys whose hash is `from` or more, in the order of hashes
    /// (and of keys where hashes are equal), until it returns false; false then.
    pub(crate) fn visit(
        &self,
        keys: &Hash,
        from: u64,
        visit: &mut dyn FnMut(u64, &[u8], Record<'_>) -> bool,
    ) -> bool {
        self.root.visit(keys, 0, 0, from, visit)
    }

    fn segment(&self, hash: u64) -> Option<&Segment> {
        let mut node = &self.root;
        let mut used = 0;
        loop {
            match node {
                Node::Empty => return None,
                Node::Leaf(segment) => return Some(segment),
                Node::Branch(branch) => {
                    node = &branch.children[branch.child_of(hash, used)].node;
                    used += BRANCH_BITS;
                }
            }
        }
    }
}

impl Node {
    fn is_full(&self) -> bool {
        matches!(self, Node::Leaf(segment) if segment.is_full())
    }

    /// Number of records, where it is small; `None` for a branch.
    fn len(&self) -> Option<usize> {
        match self {
            Node::Empty => Some(0),
            Node::Leaf(segment) => Some(segment.len()),
            Node::Branch(_) => None,
        }
    }

    /// The segment for a hash, not shared any more. With `room` it is split until it is not full.
    fn segment_mut(&mut self, keys: &Hash, hash: u64, used: u32, room: bool) -> &mut Segment {
        if let Node::Empty = self {
            *self = Node::Leaf(Arc::default());
        }
        if room && self.is_full() && used < MAX_BITS {
            let whole = Child { depth: 0, node: std::mem::take(self) };
            *self = Node::Branch(Arc::new(Branch { bits: 0, directory: vec![0], children: vec![whole] }));
        }
        match self {
            Node::Empty => unreachable!("made a leaf above"),
            Node::Leaf(segment) => Arc::make_mut(segment),
            Node::Branch(branch) => {
                let branch = Arc::make_mut(branch);
                let mut child = branch.child_of(hash, used);
                while room
                    && branch.children[child].node.is_full()
                    && branch.children[child].depth < BRANCH_BITS
                {
                    branch.split(keys, child, used);
                    child = branch.child_of(hash, used);
                }
                branch.children[child].node.segment_mut(keys, hash, used + BRANCH_BITS, room)
            }
        }
    }

    /// Joins small neighbours on the way to a hash, and drops what is empty.
    fn shrink(&mut self, hash: u64, used: u32) {
        match self {
            Node::Empty => {}
            Node::Leaf(segment) => {
                if segment.len() == 0 {
                    *self = Node::Empty;
                }
            }
            Node::Branch(branch) => {
                let branch = Arc::make_mut(branch);
                let child = branch.child_of(hash, used);
                branch.children[child].node.shrink(hash, used + BRANCH_BITS);
                while branch.join(branch.child_of(hash, used), hash, used) {}
                if let [Child { depth: 0, node }] = branch.children.as_mut_slice() {
                    *self = std::mem::take(node);
                }
            }
        }
    }

    /// `prefix` is the first hash that can be here, all of whose keys share `used` bits.
    fn visit(
        &self,
        keys: &Hash,
        prefix: u64,
        used: u32,
        from: u64,
        visit: &mut dyn FnMut(u64, &[u8], Record<'_>) -> bool,
    ) -> bool {
        let last = prefix | u64::MAX.checked_shr(used).unwrap_or(0);
        if last < from {
            return true;
        }
        match self {
            Node::Empty => true,
            Node::Leaf(segment) => {
                segment.fetch();
                let mut order: Vec<(u64, usize)> = (0..segment.len())
                    .map(|cell| (keys.of(segment.key(cell)), cell))
                    .filter(|(hash, _)| *hash >= from)
                    .collect();
                order.sort_unstable_by(|a, b| {
                    a.0.cmp(&b.0).then_with(|| segment.key(a.1).cmp(segment.key(b.1)))
                });
                order.iter().all(|&(hash, cell)| visit(hash, segment.key(cell), segment.record(cell)))
            }
            Node::Branch(branch) => {
                let mut entry = 0;
                while entry < branch.directory.len() {
                    let child = &branch.children[usize::from(branch.directory[entry])];
                    let below =
                        prefix | (entry as u64).checked_shl(u64::BITS - used - branch.bits).unwrap_or(0);
                    if !child.node.visit(keys, below, used + child.depth, from, visit) {
                        return false;
                    }
                    entry += 1 << (branch.bits - child.depth);
                }
                true
            }
        }
    }
}

impl Branch {
    fn child_of(&self, hash: u64, used: u32) -> usize {
        usize::from(self.directory[self.entry_of(hash, used)])
    }

    fn entry_of(&self, hash: u64, used: u32) -> usize {
        (hash << used).checked_shr(u64::BITS - self.bits).unwrap_or(0) as usize
    }

    /// Splits a child that is a segment by the next bit.
    fn split(&mut self, keys: &Hash, child: usize, used: u32) {
        let depth = self.children[child].depth;
        let Node::Leaf(segment) = &self.children[child].node else {
            unreachable!("only segments are full");
        };
        let (zeros, ones) = segment.split(keys, used + depth);
        if depth == self.bits {
            self.directory = self.directory.iter().flat_map(|&child| [child, child]).collect();
            self.bits += 1;
        }
        let leaf = |segment: Segment| {
            let node = if segment.len() == 0 { Node::Empty } else { Node::Leaf(Arc::new(segment)) };
            Child { depth: depth + 1, node }
        };
        self.children[child] = leaf(zeros);
        self.children.push(leaf(ones));
        let new = index(self.children.len() - 1);
        let bit = self.bits - 1 - depth;
        for (entry, to) in self.directory.iter_mut().enumerate() {
            if usize::from(*to) == child && entry >> bit & 1 == 1 {
                *to = new;
            }
        }
    }

    /// Joins a child and its neighbour when both are small. Returns whether it did.
    fn join(&mut self, child: usize, hash: u64, used: u32) -> bool {
        let depth = self.children[child].depth;
        if depth == 0 {
            return false;
        }
        let neighbour = usize::from(self.directory[self.entry_of(hash, used) ^ 1 << (self.bits - depth)]);
        let (Some(here), Some(there)) =
            (self.children[child].node.len(), self.children[neighbour].node.len())
        else {
            return false;
        };
        if self.children[neighbour].depth != depth || here + there > JOIN_RECORDS {
            return false;
        }
        let absorbed = std::mem::take(&mut self.children[neighbour].node);
        let kept = &mut self.children[child];
        kept.depth -= 1;
        match (&mut kept.node, absorbed) {
            (_, Node::Empty) => {}
            (Node::Leaf(segment), Node::Leaf(other)) => Arc::make_mut(segment).absorb(&other),
            (node, other) => *node = other,
        }
        // The last child takes the number that is free now.
        let last = self.children.len() - 1;
        self.children.swap_remove(neighbour);
        for to in &mut self.directory {
            if usize::from(*to) == neighbour {
                *to = index(child);
            }
        }
        for to in &mut self.directory {
            if usize::from(*to) == last {
                *to = index(neighbour);
            }
        }
        while self.bits > 0 && self.children.iter().all(|child| child.depth < self.bits) {
            self.directory = self.directory.iter().copied().step_by(2).collect();
            self.bits -= 1;
        }
        true
    }
}

fn index(child: usize) -> u8 {
    u8::try_from(child).expect("a branch has at most 256 children")
}
