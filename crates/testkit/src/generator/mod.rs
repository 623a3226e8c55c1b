//! Load for measurements, as cheap as we can make it, for on a small machine it takes from what it measures.
//!
//! A few threads (one is the default), each with an epoll and its share of the connections. Requests are bytes that were made before, in
//! which only the numbers of the keys change ([`template`]); of replies only the ends are looked for ([`frames`]); times go
//! into buckets ([`histogram`]). An error reply of any kind, a closed connection, and silence for [`PATIENCE`] end the run.
//!
//! | [`Pace`] | a request is sent | its time counts from |
//! |---|---|---|
//! | `Closed` | when its connection has all replies | when it was sent |
//! | `Open` | when it is due, whatever else is under way | when it was *due*: a server that stalls cannot slow down who measures it |
//! | `Once` | as `Closed`, until each key had its request | when it was sent |
//!
//! What it leaves out on purpose: it does not look at values, follow redirections or try anything again. The workloads of
//! [`load`](crate::load) do.

pub mod frames;
pub mod histogram;
pub mod schedule;
pub mod template;

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::fd::OwnedFd;
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, clock_gettime, timerfd_create,
    timerfd_settime,
};

use crate::client::SlotRange;
use crate::random::Random;
use crate::slots::{SLOTS, slot_of};
use frames::Frames;
use histogram::Histogram;
use schedule::Schedule;
use template::{MOST_KEYS, Pipeline, Template, key};

/// For how long no reply may come while some are owed.
pub const PATIENCE: Duration = Duration::from_secs(20);
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);
/// Events taken from the system at a time, and bytes read at a time.
const EVENTS: usize = 64;
const READ_BYTES: usize = 64 * 1024;
/// The timer of an open loop ticks no faster; what is due between two ticks is sent together.
const SHORTEST_TICK_NS: u64 = 50_000;
const TIMER: u64 = u64::MAX;
/// A reply, or an end that reading tells about.
const READABLE: epoll::EventFlags =
    epoll::EventFlags::IN.union(epoll::EventFlags::HUP).union(epoll::EventFlags::ERR);

/// What is sent where.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The request.
    pub template: Template,
    /// Requests that a connection sends at once; 1 in an open loop.
    pub depth: usize,
    /// To whom.
    pub targets: Vec<Target>,
    /// Threads that send; 1 in an open loop.
    pub threads: usize,
    /// When requests are sent.
    pub pace: Pace,
}

/// A server, or the leader of a shard.
#[derive(Clone, Debug)]
pub struct Target {
    /// Its address.
    pub addr: SocketAddr,
    /// Connections to it.
    pub connections: usize,
    /// The numbers of the keys that it is asked for.
    pub keys: Arc<[u32]>,
}

/// When requests are sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pace {
    /// As fast as replies come.
    Closed {
        /// How long before anything counts.
        warm_up: Duration,
        /// How long it counts then.
        length: Duration,
    },
    /// At a fixed rate.
    Open {
        /// Requests a second, over all connections.
        per_second: u64,
        /// As for `Closed`.
        warm_up: Duration,
        /// As for `Closed`.
        length: Duration,
    },
    /// As fast as replies come, until each key of each target was asked for once. For requests with one key.
    Once,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    /// Replies that count.
    pub replies: u64,
    /// How long it counted.
    pub length: Duration,
    /// How long the requests took that count.
    pub latency: Histogram,
    /// How much later than they were due they were sent: what is the generator's own fault. Only in an open loop.
    pub late: Histogram,
    /// All replies, and the processor time that the generator took for them.
    pub all_replies: u64,
    /// See `all_replies`.
    pub cpu: Duration,
}

impl Measured {
    /// Replies a second.
    pub fn rate(&self) -> f64 {
        self.replies as f64 / self.length.as_secs_f64()
    }

    /// Processor time of the generator for a request, in nanoseconds.
    pub fn cpu_ns(&self) -> f64 {
        self.cpu.as_nanos() as f64 / self.all_replies.max(1) as f64
    }

    fn absorb(&mut self, other: &Measured) {
        self.replies += other.replies;
        self.length = self.length.max(other.length);
        self.latency.absorb(&other.latency);
        self.late.absorb(&other.late);
        self.all_replies += other.all_replies;
        self.cpu += other.cpu;
    }
}

/// One target for keys `0..count`.
pub fn single(addr: SocketAddr, count: u32, connections: usize) -> Vec<Target> {
    vec![Target { addr, connections, keys: (0..count).collect() }]
}

/// A target for each leader: its share of the connections, and those of the keys `0..count` with this prefix that lie in its
/// slots, all of them over all of its slots.
///
/// # Errors
/// When a slot has no leader, a leader has no key, or there are fewer connections than leaders.
pub fn spread(ranges: &[SlotRange], prefix: &str, count: u32, connections: usize) -> Result<Vec<Target>> {
    let mut leaders: Vec<&str> = ranges.iter().map(|range| range.leader.as_str()).collect();
    leaders.sort_unstable();
    leaders.dedup();
    ensure!(connections >= leaders.len(), "{connections} connections for {} leaders", leaders.len());
    let mut owners = vec![None; SLOTS.into()];
    for range in ranges {
        let owner = leaders.binary_search(&range.leader.as_str()).ok();
        owners[usize::from(range.first)..=usize::from(range.last)].fill(owner);
    }
    let mut keys = vec![Vec::new(); leaders.len()];
    for number in 0..count {
        let slot = slot_of(key(prefix, number).as_bytes());
        keys[owners[usize::from(slot)].with_context(|| format!("slot {slot} has no leader"))?].push(number);
    }
    let (share, rest) = (connections / leaders.len(), connections % leaders.len());
    let targets = leaders.iter().zip(keys).enumerate().map(|(n, (leader, keys))| {
        ensure!(!keys.is_empty(), "{leader} has none of {count} keys");
        let addr = leader.parse().with_context(|| format!("the address {leader}"))?;
        Ok(Target { addr, connections: share + usize::from(n < rest), keys: keys.into() })
    });
    targets.collect()
}

/// Sends, and waits until all replies are there.
///
/// # Errors
/// When the plan makes no sense, a server cannot be reached, or answers with an error, or not at all.
pub fn run(plan: &Plan) -> Result<Measured> {
    check(plan)?;
    let mut shares: Vec<Vec<Line>> = (0..plan.threads).map(|_| Vec::new()).collect();
    let mut number = 0;
    for target in &plan.targets {
        for n in 0..target.connections {
            let choice = match plan.pace {
                Pace::Once => Choice::Once { next: n, step: target.connections },
                _ => Choice::Random(Random::new(number)),
            };
            shares[number as usize % plan.threads].push(Line::open(target, choice)?);
            number += 1;
        }
    }
    let began = Instant::now();
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            shares.into_iter().map(|lines| scope.spawn(|| Worker::new(plan, lines, began)?.run())).collect();
        let mut sum = Measured::default();
        for thread in threads {
            sum.absorb(&thread.join().expect("a thread of the generator panicked")?);
        }
        Ok(sum)
    })
}

fn check(plan: &Plan) -> Result<()> {
    let connections: usize = plan.targets.iter().map(|target| target.connections).sum();
    ensure!(plan.depth >= 1, "a depth of at least 1");
    ensure!((1..=connections).contains(&plan.threads), "{} threads, {connections} connections", plan.threads);
    if plan.template.keys() > 0 {
        for Target { addr, keys, .. } in &plan.targets {
            ensure!(!keys.is_empty(), "no keys for {addr}");
            ensure!(keys.iter().all(|key| *key < MOST_KEYS), "keys have numbers below {MOST_KEYS}");
        }
    }
    match plan.pace {
        Pace::Closed { length, .. } => ensure!(!length.is_zero(), "some time"),
        Pace::Open { per_second, length, .. } => {
            ensure!(per_second >= 1 && !length.is_zero(), "some requests for some time");
            ensure!(plan.threads == 1 && plan.depth == 1, "an open loop has one thread and depth 1");
        }
        Pace::Once => ensure!(plan.template.keys() == 1, "a request with one key"),
    }
    Ok(())
}

/// A connection.
#[derive(Debug)]
struct Line {
    socket: TcpStream,
    addr: SocketAddr,
    keys: Arc<[u32]>,
    choice: Choice,
    frames: Frames,
    /// Requests without a reply, in the order they were sent.
    owed: VecDeque<Owed>,
    /// What the system did not take yet.
    unsent: Vec<u8>,
}

/// Requests that were sent together.
#[derive(Debug)]
struct Owed {
    since_ns: u64,
    replies: u64,
}

/// Which key is next.
#[derive(Debug)]
enum Choice {
    Random(Random),
    /// Each in its turn: the connections of a target share its keys.
    Once {
        next: usize,
        step: usize,
    },
}

impl Line {
    fn open(target: &Target, choice: Choice) -> Result<Line> {
        let socket = TcpStream::connect_timeout(&target.addr, CONNECT_PATIENCE)
            .with_context(|| format!("connecting to {}", target.addr))?;
        socket.set_nodelay(true)?;
        socket.set_nonblocking(true)?;
        Ok(Line {
            socket,
            addr: target.addr,
            keys: Arc::clone(&target.keys),
            choice,
            frames: Frames::default(),
            owed: VecDeque::new(),
            unsent: Vec::new(),
        })
    }

    /// How many requests it may send, of so many wanted.
    fn allowed(&self, wanted: usize) -> usize {
        match self.choice {
            Choice::Random(_) => wanted,
            Choice::Once { next, step } => self.keys.len().saturating_sub(next).div_ceil(step).min(wanted),
        }
    }

    fn next_key(&mut self) -> u32 {
        match &mut self.choice {
            // Without the division of a remainder.
            Choice::Random(random) => {
                let scaled = (random.next() >> 32) * self.keys.len() as u64;
                self.keys[(scaled >> 32) as usize]
            }
            Choice::Once { next, step } => {
                *next += *step;
                self.keys[*next - *step]
            }
        }
    }
}

/// A thread.
struct Worker<'a> {
    plan: &'a Plan,
    lines: Vec<Line>,
    pipeline: Pipeline,
    epoll: OwnedFd,
    incoming: Vec<u8>,
    began: Instant,
    /// What counts, in nanoseconds since the beginning.
    window: Range<u64>,
    /// Replies that are owed, and when the last one came.
    owed: u64,
    last_reply_ns: u64,
    measured: Measured,
}

/// The requests of an open loop.
struct Arrivals {
    timer: OwnedFd,
    schedule: Schedule,
    next_line: usize,
    /// Everything that was due in time was sent.
    are_over: bool,
}

impl<'a> Worker<'a> {
    fn new(plan: &'a Plan, lines: Vec<Line>, began: Instant) -> Result<Worker<'a>> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        for (n, line) in lines.iter().enumerate() {
            epoll::add(&epoll, &line.socket, epoll::EventData::new_u64(n as u64), epoll::EventFlags::IN)?;
        }
        let window = match plan.pace {
            Pace::Closed { warm_up, length } | Pace::Open { warm_up, length, .. } => {
                nanos(warm_up)..nanos(warm_up + length)
            }
            Pace::Once => 0..u64::MAX,
        };
        Ok(Worker {
            plan,
            lines,
            pipeline: plan.template.repeat(plan.depth),
            epoll,
            incoming: vec![0; READ_BYTES],
            began,
            window,
            owed: 0,
            last_reply_ns: 0,
            measured: Measured::default(),
        })
    }

    fn run(mut self) -> Result<Measured> {
        let cpu_before = thread_cpu();
        let mut arrivals = match self.plan.pace {
            Pace::Open { per_second, .. } => Some(Arrivals::start(per_second, &self.epoll)?),
            _ => None,
        };
        if arrivals.is_none() {
            for at in 0..self.lines.len() {
                self.send(at, self.now_ns(), self.plan.depth)?;
            }
        }
        let mut events: Vec<epoll::Event> = Vec::with_capacity(EVENTS);
        while self.owed > 0 || arrivals.as_ref().is_some_and(|arrivals| !arrivals.are_over) {
            let waiting = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
            match epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&waiting)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => bail!("epoll: {error}"),
            }
            if let Some(arrivals) = arrivals.as_mut().filter(|arrivals| !arrivals.are_over) {
                self.send_due(arrivals)?;
            }
            for event in events.drain(..) {
                let at = match event.data.u64() {
                    TIMER => {
                        let timer = &arrivals.as_ref().context("a timer nobody started")?.timer;
                        // The number of ticks does not matter: the schedule knows what is due.
                        let _ = rustix::io::read(timer, &mut [0; 8]);
                        continue;
                    }
                    at => at as usize,
                };
                // Copied: the event is a packed structure.
                let flags = event.flags;
                if flags.contains(epoll::EventFlags::OUT) {
                    self.flush(at)?;
                }
                if flags.intersects(READABLE) {
                    let now_ns = self.receive(at)?;
                    let more = arrivals.is_none() && now_ns < self.window.end;
                    if more && self.lines[at].owed.is_empty() {
                        self.send(at, now_ns, self.plan.depth)?;
                    }
                }
            }
            let silent_ns = self.now_ns().saturating_sub(self.last_reply_ns);
            ensure!(
                self.owed == 0 || silent_ns < nanos(PATIENCE),
                "{} replies are owed, and none came for {PATIENCE:?}",
                self.owed
            );
        }
        self.measured.length = match self.plan.pace {
            Pace::Once => self.began.elapsed(),
            _ => Duration::from_nanos(self.window.end - self.window.start),
        };
        self.measured.cpu = thread_cpu().saturating_sub(cpu_before);
        Ok(self.measured)
    }

    fn send_due(&mut self, arrivals: &mut Arrivals) -> Result<()> {
        loop {
            let now_ns = self.now_ns();
            let Some(due_ns) = arrivals.schedule.next(now_ns) else { return Ok(()) };
            if due_ns >= self.window.end {
                arrivals.are_over = true;
                return Ok(());
            }
            if self.window.contains(&due_ns) {
                self.measured.late.record(now_ns - due_ns, 1);
            }
            let at = arrivals.next_line;
            arrivals.next_line = (at + 1) % self.lines.len();
            if self.owed == 0 {
                // Silence is counted from the first request that waits.
                self.last_reply_ns = now_ns;
            }
            self.send(at, due_ns, 1)?;
        }
    }

    /// Sends requests whose time counts from `since_ns`.
    fn send(&mut self, at: usize, since_ns: u64, wanted: usize) -> Result<()> {
        let line = &mut self.lines[at];
        let requests = line.allowed(wanted);
        if requests == 0 {
            return Ok(());
        }
        let bytes = self.pipeline.fill(requests, || line.next_key());
        line.owed.push_back(Owed { since_ns, replies: requests as u64 });
        self.owed += requests as u64;
        if !line.unsent.is_empty() {
            line.unsent.extend_from_slice(bytes);
            return Ok(());
        }
        let sent =
            written((&line.socket).write(bytes)).with_context(|| format!("sending to {}", line.addr))?;
        if sent < bytes.len() {
            line.unsent.extend_from_slice(&bytes[sent..]);
            self.watch(at, epoll::EventFlags::IN | epoll::EventFlags::OUT)?;
        }
        Ok(())
    }

    /// Sends what the system did not take before.
    fn flush(&mut self, at: usize) -> Result<()> {
        let line = &mut self.lines[at];
        let sent = written((&line.socket).write(&line.unsent))
            .with_context(|| format!("sending to {}", line.addr))?;
        line.unsent.drain(..sent);
        if line.unsent.is_empty() {
            self.watch(at, epoll::EventFlags::IN)?;
        }
        Ok(())
    }

    fn watch(&self, at: usize, flags: epoll::EventFlags) -> Result<()> {
        let socket = &self.lines[at].socket;
        Ok(epoll::modify(&self.epoll, socket, epoll::EventData::new_u64(at as u64), flags)?)
    }

    /// Takes what came; the time when it did.
    fn receive(&mut self, at: usize) -> Result<u64> {
        let line = &mut self.lines[at];
        let length = match (&line.socket).read(&mut self.incoming) {
            Ok(0) => bail!("{} closed a connection", line.addr),
            Ok(length) => length,
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => 0,
            Err(e) => return Err(e).with_context(|| format!("receiving from {}", line.addr)),
        };
        let now_ns = nanos(self.began.elapsed());
        let mut replies = line
            .frames
            .feed(&self.incoming[..length])
            .with_context(|| format!("{} answered with something else than a value", line.addr))?;
        if replies > 0 {
            self.last_reply_ns = now_ns;
        }
        while replies > 0 {
            let first = line.owed.front_mut();
            let first = first.with_context(|| format!("{} answered what was not asked", line.addr))?;
            let of_it = replies.min(first.replies);
            // In an open loop what was due in time counts, though it came late.
            let counts_from = if let Pace::Open { .. } = self.plan.pace { first.since_ns } else { now_ns };
            if self.window.contains(&counts_from) {
                self.measured.replies += of_it;
                self.measured.latency.record(now_ns.saturating_sub(first.since_ns), of_it);
            }
            self.measured.all_replies += of_it;
            self.owed -= of_it;
            replies -= of_it;
            first.replies -= of_it;
            if first.replies == 0 {
                line.owed.pop_front();
            }
        }
        Ok(now_ns)
    }

    fn now_ns(&self) -> u64 {
        nanos(self.began.elapsed())
    }
}

impl Arrivals {
    fn start(per_second: u64, epoll: &OwnedFd) -> Result<Arrivals> {
        let timer =
            timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        let tick_ns = (1_000_000_000 / per_second).clamp(SHORTEST_TICK_NS, 999_999_999);
        let tick = Timespec { tv_sec: 0, tv_nsec: tick_ns.try_into()? };
        let ticks = Itimerspec { it_interval: tick, it_value: tick };
        timerfd_settime(&timer, TimerfdTimerFlags::empty(), &ticks)?;
        epoll::add(epoll, &timer, epoll::EventData::new_u64(TIMER), epoll::EventFlags::IN)?;
        Ok(Arrivals { timer, schedule: Schedule::new(per_second), next_line: 0, are_over: false })
    }
}

/// How much the system took.
fn written(result: std::io::Result<usize>) -> std::io::Result<usize> {
    match result {
        Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(0),
        other => other,
    }
}

fn nanos(time: Duration) -> u64 {
    time.as_nanos().try_into().unwrap_or(u64::MAX)
}

fn thread_cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.try_into().unwrap_or(0), time.tv_nsec.try_into().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::cluster_slots;
    use crate::oracle::Redis;
    use crate::plain::Plain;
    use crate::reply::Reply;
    use crate::resp::Connection;
    use std::collections::BTreeMap;
    use std::net::TcpListener;

    /// A server for one connection: answers each request with what `answer` makes of its bytes, requests being `length` bytes long.
    fn server(
        length: usize,
        answer: impl Fn(&[u8]) -> Option<Vec<u8>> + Send + 'static,
    ) -> (SocketAddr, std::thread::JoinHandle<Vec<Vec<u8>>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let (mut request, mut requests) = (vec![0; length], Vec::new());
            while stream.read_exact(&mut request).is_ok() {
                requests.push(request.clone());
                match answer(&request) {
                    Some(reply) => stream.write_all(&reply).unwrap(),
                    None => return requests,
                }
            }
            requests
        });
        (addr, thread)
    }

    fn plan(addr: SocketAddr, template: Template, pace: Pace) -> Plan {
        Plan { template, depth: 1, targets: single(addr, 10, 1), threads: 1, pace }
    }

    #[test]
    fn each_key_is_set_once() {
        let template = Template::set("k:", 5);
        let length = template.repeat(1).fill(1, || 0).len();
        let (addr, thread) = server(length, |_| Some(b"+OK\r\n".to_vec()));
        let plan = Plan { depth: 4, ..plan(addr, template.clone(), Pace::Once) };
        let measured = run(&plan).unwrap();
        assert_eq!((measured.all_replies, measured.latency.total()), (10, 10));
        let expected: Vec<Vec<u8>> = (0..10).map(|n| template.repeat(1).fill(1, || n).to_vec()).collect();
        assert_eq!(thread.join().unwrap(), expected);
    }

    #[test]
    fn connections_share_the_keys_of_a_target() {
        let addr: SocketAddr = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let _listener = TcpListener::bind(addr).unwrap();
        let target = Target { addr, connections: 3, keys: (0..10).collect() };
        let mut seen = BTreeMap::new();
        for n in 0..3 {
            let mut line = Line::open(&target, Choice::Once { next: n, step: 3 }).unwrap();
            while line.allowed(1) > 0 {
                *seen.entry(line.next_key()).or_insert(0) += 1;
            }
        }
        assert_eq!(seen, (0..10).map(|n| (n, 1)).collect());
    }

    #[test]
    fn an_error_a_close_and_too_many_replies_end_the_run() {
        let pace = Pace::Closed { warm_up: Duration::ZERO, length: Duration::from_secs(20) };
        let answers: [(Option<&[u8]>, &str); 3] =
            [(Some(b"-ERR no\r\n"), "ERR no"), (None, "closed"), (Some(b"+OK\r\n+OK\r\n"), "not asked")];
        for (answer, why) in answers {
            let (addr, _) = server(6, move |_| answer.map(<[u8]>::to_vec));
            let error = run(&plan(addr, Template::raw(b"PING\r\n"), pace)).unwrap_err();
            assert!(format!("{error:#}").contains(why), "{error:#}");
        }
    }

    #[test]
    fn a_stall_is_in_the_times_of_everything_that_was_due_meanwhile() {
        // The 200th reply takes 100 ms: at 1,000 a second some hundred requests wait for it, 50 ms each on average.
        let requests = std::sync::atomic::AtomicU64::new(0);
        let (addr, _) = server(6, move |_| {
            if requests.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 200 {
                std::thread::sleep(Duration::from_millis(100));
            }
            Some(b"+PONG\r\n".to_vec())
        });
        let pace =
            Pace::Open { per_second: 1_000, warm_up: Duration::ZERO, length: Duration::from_millis(500) };
        let measured = run(&plan(addr, Template::raw(b"PING\r\n"), pace)).unwrap();
        assert_eq!((measured.replies, measured.late.total()), (500, 500));
        // A tenth of all waited for at least half of the stall.
        assert!(
            measured.latency.percentile(91.0) >= Duration::from_millis(50),
            "{:?}",
            measured.latency.longest()
        );
        assert!(measured.latency.longest() >= Duration::from_millis(90));
    }

    #[test]
    fn requests_larger_than_the_buffers_of_the_system_arrive_whole() {
        let template = Template::set("k:", 1 << 20);
        let request = template.repeat(1).fill(1, || 3).to_vec();
        let (addr, thread) = server(request.len(), |_| Some(b"+OK\r\n".to_vec()));
        let targets = vec![Target { addr, connections: 1, keys: [3].into() }];
        let pace = Pace::Closed { warm_up: Duration::ZERO, length: Duration::from_millis(200) };
        let measured = run(&Plan { depth: 16, targets, ..plan(addr, template, pace) }).unwrap();
        let requests = thread.join().unwrap();
        assert_eq!(requests.len() as u64, measured.all_replies);
        assert!(requests.len() >= 16 && requests.iter().all(|r| *r == request));
    }

    #[tokio::test]
    async fn each_leader_of_a_real_cluster_gets_its_own_keys() {
        let nodes = Redis::cluster_of(3, 1, &[]).unwrap();
        let ranges = cluster_slots(&mut Connection::open(&nodes[0].addr()).await.unwrap()).await.unwrap();
        let mut targets = spread(&ranges, "key:", 3_000, 7).unwrap();
        let set = Template::set("key:", 3);
        let once = Plan { template: set, depth: 8, targets: targets.clone(), threads: 2, pace: Pace::Once };
        assert_eq!(run(&once).unwrap().all_replies, 3_000);
        for target in &targets {
            let mut connection = Plain::open(target.addr).unwrap();
            assert_eq!(
                connection.call(&["DBSIZE"]).unwrap(),
                Reply::Int(target.keys.len().try_into().unwrap())
            );
        }
        // With the keys of two leaders exchanged, all of them are told to go elsewhere.
        let keys = Arc::clone(&targets[0].keys);
        targets[0].keys = std::mem::replace(&mut targets[1].keys, keys);
        let error = run(&Plan { targets, ..once }).unwrap_err();
        assert!(format!("{error:#}").contains("MOVED"), "{error:#}");
    }

    #[test]
    fn plans_that_make_no_sense_are_refused() {
        let addr: SocketAddr = "127.0.0.1:1".parse().unwrap();
        let closed = Pace::Closed { warm_up: Duration::ZERO, length: Duration::from_secs(1) };
        let good = plan(addr, Template::get("k:"), closed);
        check(&good).unwrap();
        let open = Pace::Open { per_second: 1, warm_up: Duration::ZERO, length: Duration::from_secs(1) };
        for bad in [
            Plan { depth: 0, ..good.clone() },
            Plan { threads: 2, ..good.clone() },
            Plan { targets: single(addr, 0, 1), ..good.clone() },
            Plan { targets: single(addr, MOST_KEYS + 1, 1), ..good.clone() },
            Plan { pace: open, depth: 2, ..good.clone() },
            Plan { pace: Pace::Once, template: Template::raw(b"PING\r\n"), ..good },
        ] {
            assert!(check(&bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn leaders_get_their_keys_and_their_share_of_connections() {
        let range = |first, last, leader: &str| SlotRange {
            first,
            last,
            leader: leader.to_owned(),
            followers: Vec::new(),
        };
        let ranges = [
            range(0, 99, "127.0.0.1:2"),
            range(100, 9_999, "127.0.0.1:1"),
            range(10_000, SLOTS - 1, "127.0.0.1:2"),
        ];
        let targets = spread(&ranges, "key:", 5_000, 5).unwrap();
        assert_eq!(targets.iter().map(|t| t.connections).collect::<Vec<_>>(), [3, 2]);
        for target in &targets {
            for number in target.keys.iter() {
                let slot = slot_of(key("key:", *number).as_bytes());
                assert_eq!((100..10_000).contains(&slot), target.addr.port() == 1);
            }
        }
        assert_eq!(targets.iter().map(|t| t.keys.len()).sum::<usize>(), 5_000);
        assert!(spread(&ranges, "key:", 5_000, 1).is_err());
        assert!(spread(&ranges[..2], "key:", 5_000, 5).is_err());
    }
}
