//! What waits for the writer: one first-in-first-out queue per group, served in turn by bytes.
//!
//! Appends count against a bound and wait for room ([`Queue::wait_for_room`]); everything else is small and never waits. A
//! committed position waits outside the order, replaced by the next one, until a frame leaves its group's queue empty.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};

use tokio::sync::Notify;

use super::{Done, GroupId, Position, Record, SyncMode, group::Group};
use crate::clock::Environment;

/// Turns of one group in a full frame.
const TURNS_PER_FRAME: usize = 8;

/// A change to one group's log on its way to the disk.
pub(super) struct Request {
    pub(super) group: Arc<Group>,
    pub(super) change: Change,
    /// Upper bound of its records' size.
    pub(super) bytes: usize,
    /// Counts against the bound of the queue.
    pub(super) counted: bool,
    pub(super) sync: SyncMode,
    /// Places of entries that this change ended.
    pub(super) freed: Vec<Freed>,
    pub(super) done: Option<Done>,
}

/// What a request writes.
pub(super) enum Change {
    Append { records: Vec<Record>, stamp: u64 },
    Vote(Bytes),
    Committed(Bytes),
    Truncate { keep: Option<u64> },
    Purge(Position),
    Forget,
}

/// Bytes of a segment that are not needed any more once a change is on disk.
#[derive(Clone, Copy, Debug)]
pub(super) struct Freed {
    pub(super) segment: u64,
    pub(super) bytes: u64,
}

/// What the writer does next.
pub(super) enum Next {
    /// Write these.
    Batch(Vec<Request>),
    /// Nothing waits; the time asked for has come, or somebody called [`Queue::nudge`].
    Idle,
    /// Nothing waits and nothing will.
    Closed,
}

pub(super) struct Queue {
    state: Mutex<State>,
    work: Condvar,
    room: Condvar,
    /// Wakes a writer that is a task.
    wake: Notify,
    environment: Environment,
    limit_bytes: usize,
    committed_delay: Duration,
}

#[derive(Default)]
struct State {
    groups: BTreeMap<GroupId, Waiting>,
    /// Groups with requests, the next one first.
    ring: VecDeque<GroupId>,
    /// Groups with a committed position.
    lagging: Vec<GroupId>,
    lagging_since: Option<Duration>,
    /// Counted bytes, waiting or taken and not yet released.
    bytes: usize,
    wakers: Vec<Box<dyn FnOnce() + Send>>,
    nudged: bool,
    closed: bool,
}

#[derive(Default)]
struct Waiting {
    requests: VecDeque<Request>,
    credit_bytes: usize,
    committed: Option<(Arc<Group>, Bytes)>,
}

impl Queue {
    pub(super) fn new(environment: Environment, limit_bytes: usize, committed_delay: Duration) -> Queue {
        let (state, work, room) = Default::default();
        Queue { state, work, room, wake: Notify::new(), environment, limit_bytes, committed_delay }
    }

    fn wake_writer(&self) {
        if self.environment.is_simulated() {
            self.wake.notify_one();
        } else {
            self.work.notify_one();
        }
    }

    /// Blocks until an append may come in (or the queue is closed).
    pub(super) fn wait_for_room(&self) {
        let mut state = self.state.lock();
        while state.bytes >= self.limit_bytes && !state.closed {
            self.room.wait(&mut state);
        }
    }

    /// Whether an append may come in; if not, `wake` is called once it may.
    pub(super) fn when_room(&self, wake: Box<dyn FnOnce() + Send>) -> bool {
        let mut state = self.state.lock();
        let room = state.bytes < self.limit_bytes || state.closed;
        if !room {
            state.wakers.push(wake);
        }
        room
    }

    /// Queues a request, or gives it back when the queue is closed.
    pub(super) fn push(&self, request: Request) -> Result<(), Request> {
        let mut state = self.state.lock();
        let State { groups, ring, bytes, closed, .. } = &mut *state;
        if *closed {
            return Err(request);
        }
        if request.counted {
            *bytes += request.bytes;
        }
        let id = request.group.id;
        let waiting = groups.entry(id).or_default();
        if waiting.requests.is_empty() {
            ring.push_back(id);
        }
        waiting.requests.push_back(request);
        drop(state);
        self.wake_writer();
        Ok(())
    }

    /// Leaves a committed position to be written when it fits.
    pub(super) fn set_committed(&self, group: &Arc<Group>, committed: Bytes) {
        let mut state = self.state.lock();
        let State { groups, lagging, lagging_since, closed, .. } = &mut *state;
        if *closed {
            return;
        }
        let waiting = groups.entry(group.id).or_default();
        if waiting.committed.replace((group.clone(), committed)).is_none() {
            lagging.push(group.id);
        }
        // The writer must learn of the new deadline, once.
        if lagging_since.is_none() {
            *lagging_since = Some(self.environment.now());
            drop(state);
            self.wake_writer();
        }
    }

    /// A forgotten group's committed position must not be written behind its end.
    pub(super) fn forget_committed(&self, group: GroupId) {
        let mut state = self.state.lock();
        if let Some(waiting) = state.groups.get_mut(&group) {
            waiting.committed = None;
        }
        state.lagging.retain(|id| *id != group);
        if state.lagging.is_empty() {
            state.lagging_since = None;
        }
    }

    /// Waits for something to write, until `deadline` of the environment's clock at the latest.
    pub(super) fn next(&self, frame_bytes: usize, deadline: Option<Duration>) -> Next {
        let mut state = self.state.lock();
        loop {
            match self.look(&mut state, frame_bytes, deadline) {
                Ok(next) => return next,
                Err(Some(patience)) => {
                    self.work.wait_for(&mut state, patience);
                }
                Err(None) => self.work.wait(&mut state),
            }
        }
    }

    /// The same for a writer that is a task.
    pub(super) async fn next_simulated(&self, frame_bytes: usize, deadline: Option<Duration>) -> Next {
        loop {
            let look = self.look(&mut self.state.lock(), frame_bytes, deadline);
            match look {
                Ok(next) => return next,
                Err(Some(patience)) => {
                    let _woken_or_due = tokio::time::timeout(patience, self.wake.notified()).await;
                }
                Err(None) => self.wake.notified().await,
            }
        }
    }

    /// What there is to do, or how long to wait unless woken.
    fn look(
        &self,
        state: &mut State,
        frame_bytes: usize,
        deadline: Option<Duration>,
    ) -> Result<Next, Option<Duration>> {
        let now = self.environment.now();
        let lagging_due = state.lagging_since.map(|since| since + self.committed_delay);
        if !state.ring.is_empty() || lagging_due.is_some_and(|due| due <= now || state.closed) {
            return Ok(Next::Batch(state.take(frame_bytes, now)));
        }
        if state.closed {
            return Ok(Next::Closed);
        }
        if std::mem::take(&mut state.nudged) || deadline.is_some_and(|deadline| deadline <= now) {
            return Ok(Next::Idle);
        }
        Err(deadline.into_iter().chain(lagging_due).min().map(|until| until.saturating_sub(now)))
    }

    /// Makes [`Queue::next`] return, once.
    pub(super) fn nudge(&self) {
        self.state.lock().nudged = true;
        self.wake_writer();
    }

    /// Gives back the room of requests that were taken.
    pub(super) fn release(&self, bytes: usize) {
        if bytes == 0 {
            return;
        }
        let mut state = self.state.lock();
        state.bytes -= bytes;
        let wakers =
            if state.bytes < self.limit_bytes { std::mem::take(&mut state.wakers) } else { Vec::new() };
        drop(state);
        self.room.notify_all();
        wakers.into_iter().for_each(|wake| wake());
    }

    /// Lets nothing in any more. What waits is still handed out.
    pub(super) fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        let wakers = std::mem::take(&mut state.wakers);
        drop(state);
        self.wake_writer();
        self.room.notify_all();
        wakers.into_iter().for_each(|wake| wake());
    }

    /// Closes the queue and takes what waits, in order per group.
    pub(super) fn abandon(&self) -> Vec<Request> {
        self.close();
        let mut state = self.state.lock();
        state.lagging.clear();
        state.lagging_since = None;
        state.ring.clear();
        std::mem::take(&mut state.groups).into_values().flat_map(|waiting| waiting.requests).collect()
    }

    /// Counted bytes, waiting or taken and not yet released.
    pub(super) fn bytes(&self) -> usize {
        self.state.lock().bytes
    }
}

impl State {
    /// Deficit round robin: each group may take its credit of bytes per turn, a request larger than that saves up for it. At
    /// least one request is taken when there is any.
    fn take(&mut self, frame_bytes: usize, now: Duration) -> Vec<Request> {
        let quantum = (frame_bytes / TURNS_PER_FRAME).max(1);
        let mut batch = Vec::new();
        let mut total = 0;
        while let Some(id) = self.ring.pop_front() {
            let waiting = self.groups.entry(id).or_default();
            waiting.credit_bytes += quantum;
            let mut full = false;
            while let Some(request) = waiting.requests.front() {
                full = !batch.is_empty() && total + request.bytes > frame_bytes;
                if full || request.bytes > waiting.credit_bytes {
                    break;
                }
                waiting.credit_bytes -= request.bytes;
                total += request.bytes;
                batch.extend(waiting.requests.pop_front());
            }
            if waiting.requests.is_empty() {
                waiting.credit_bytes = 0;
            } else if full {
                self.ring.push_front(id);
                break;
            } else {
                self.ring.push_back(id);
            }
        }
        self.take_committed(&mut batch, now);
        batch
    }

    fn take_committed(&mut self, batch: &mut Vec<Request>, now: Duration) {
        let State { groups, lagging, lagging_since, .. } = self;
        lagging.retain(|id| {
            let Some(waiting) = groups.get_mut(id).filter(|waiting| waiting.requests.is_empty()) else {
                return true;
            };
            batch.extend(
                waiting.committed.take().map(|(group, committed)| Request::committed(group, committed)),
            );
            false
        });
        *lagging_since = (!lagging.is_empty()).then_some(now);
    }
}
