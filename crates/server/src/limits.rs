//! Protection of the many clients of a port from the one that takes too much: who is let in, and under which name.
//!
//! Contract: no IO and no clock; a decision is a function of the rules, of who is connected, and of the moment given. Every
//! connection that was [admitted](Limits::admit) [leaves](Limits::leave) once. What is remembered is bounded by the
//! connections there are and by the addresses that came within the last second or so.
//!
//! - `maxclients` counts all. The last few of them (`maxclients-reserve`) are for trusted addresses, so that an operator gets in
//!   when a leak has taken the rest.
//! - `maxclients-per-address` and `accept-rate-per-address` take an IPv4 address, or the 64 bits of an IPv6 network, for one
//!   client. Trusted addresses are exempt from them and from `accept-rate`.
//! - `maxclients-per-name` counts the connections that gave themselves the same name, wherever they come from: a leak in an
//!   application has one name and often many addresses. Connections without a name are not counted.

use parking_lot::Mutex;
use serde::Deserialize;
use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The reserve is at most this part of `maxclients`.
const LARGEST_RESERVE: u64 = 100;
/// Addresses without a connection are looked through for old ones when there are more than this.
const REMEMBERED_ADDRESSES: usize = 1024;

/// Limits of a server as it starts.
#[derive(Clone, PartialEq, Debug)]
pub struct LimitConfig {
    /// The largest argument of a request, in bytes.
    pub proto_max_bulk_len: u64,
    /// The largest request, in bytes.
    pub client_query_buffer_limit: u64,
    /// How many bytes may wait for a client.
    pub client_output_buffer_limit: OutputLimits,
    /// Who is let in.
    pub rules: Rules,
}

impl Default for LimitConfig {
    fn default() -> LimitConfig {
        LimitConfig {
            proto_max_bulk_len: 512 << 20,
            client_query_buffer_limit: 1 << 30,
            client_output_buffer_limit: OutputLimits::default(),
            rules: Rules::default(),
        }
    }
}

/// Who is let in, besides `maxclients`.
#[derive(Clone, PartialEq, Debug)]
pub struct Rules {
    /// Connections of one address.
    pub per_address: Quota,
    /// Connections of one name.
    pub per_name: Quota,
    /// Of `maxclients`, connections for trusted addresses only.
    pub reserve: u64,
    /// Addresses of operators.
    pub trusted: Networks,
    /// New connections in a second; 0 for no limit.
    pub accept_rate: u64,
    /// New connections of one address in a second; 0 for no limit.
    pub accept_rate_per_address: u64,
}

impl Default for Rules {
    fn default() -> Rules {
        Rules {
            per_address: Quota::None,
            per_name: Quota::Percent(90),
            reserve: 16,
            trusted: Networks::loopback(),
            accept_rate: 0,
            accept_rate_per_address: 0,
        }
    }
}

/// How many connections may have something in common.
#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Word")]
pub enum Quota {
    /// Any number: `0`.
    None,
    /// So many.
    Count(u32),
    /// So many hundredths of `maxclients`: `90%`.
    Percent(u8),
}

impl Quota {
    fn of(self, maxclients: u64) -> u64 {
        match self {
            Quota::None => u64::MAX,
            Quota::Count(count) => count.into(),
            Quota::Percent(percent) => (maxclients.saturating_mul(percent.into()) / 100).max(1),
        }
    }
}

impl fmt::Display for Quota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Quota::None => f.write_str("0"),
            Quota::Count(count) => write!(f, "{count}"),
            Quota::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

impl FromStr for Quota {
    type Err = String;
    fn from_str(text: &str) -> Result<Quota, String> {
        let quota = match text.strip_suffix('%') {
            Some(percent) => {
                percent.parse().ok().filter(|percent| (1..=100).contains(percent)).map(Quota::Percent)
            }
            None => match text.parse() {
                Ok(0) => Some(Quota::None),
                Ok(count) => Some(Quota::Count(count)),
                Err(_) => None,
            },
        };
        quota.ok_or_else(|| {
            "argument must be a number of connections, a percentage from 1% to 100%, or 0".to_owned()
        })
    }
}

/// A list of addresses and networks.
#[derive(Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(try_from = "Word")]
pub struct Networks(Vec<(IpAddr, u8)>);

impl Networks {
    /// This machine.
    fn loopback() -> Networks {
        Networks(vec![(IpAddr::from([127, 0, 0, 1]), 32), (IpAddr::V6(Ipv6Addr::LOCALHOST), 128)])
    }

    fn contain(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|&(network, bits)| match (network, address) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                let shift = 32 - u32::from(bits);
                u32::from(network).checked_shr(shift) == u32::from(address).checked_shr(shift)
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                let shift = 128 - u32::from(bits);
                u128::from(network).checked_shr(shift) == u128::from(address).checked_shr(shift)
            }
            _ => false,
        })
    }
}

impl fmt::Display for Networks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (address, bits)) in self.0.iter().enumerate() {
            let blank = if index == 0 { "" } else { " " };
            let whole = if address.is_ipv4() { 32 } else { 128 };
            match bits {
                bits if *bits == whole => write!(f, "{blank}{address}")?,
                bits => write!(f, "{blank}{address}/{bits}")?,
            }
        }
        Ok(())
    }
}

impl FromStr for Networks {
    type Err = String;
    fn from_str(text: &str) -> Result<Networks, String> {
        let network = |word: &str| {
            let (address, bits) = match word.split_once('/') {
                Some((address, bits)) => (address, Some(bits.parse::<u8>().ok()?)),
                None => (word, None),
            };
            let address: IpAddr = address.parse().ok()?;
            let whole = if address.is_ipv4() { 32 } else { 128 };
            Some((address, bits.unwrap_or(whole))).filter(|(_, bits)| *bits <= whole)
        };
        text.split_ascii_whitespace()
            .map(|word| {
                network(word).ok_or_else(|| {
                    format!("argument must be addresses or networks (10.0.0.0/8), not '{word}'")
                })
            })
            .collect::<Result<_, _>>()
            .map(Networks)
    }
}

/// `client-output-buffer-limit`: how many bytes of replies may wait, for each of Redis's classes of clients.
#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Word")]
pub struct OutputLimits([OutputLimit; 3]);

/// How many bytes may wait for a client of a class.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct OutputLimit {
    /// Never more than these; 0 for no limit.
    pub hard_bytes: u64,
    /// Not more than these for longer than `soft_seconds`; 0 for no limit.
    pub soft_bytes: u64,
    /// See `soft_bytes`.
    pub soft_seconds: u64,
}

const CLASSES: [&str; 3] = ["normal", "slave", "pubsub"];

impl Default for OutputLimits {
    fn default() -> OutputLimits {
        let limit =
            |hard_bytes, soft_bytes, soft_seconds| OutputLimit { hard_bytes, soft_bytes, soft_seconds };
        OutputLimits([limit(0, 0, 0), limit(256 << 20, 64 << 20, 60), limit(32 << 20, 8 << 20, 60)])
    }
}

impl OutputLimits {
    /// The class of clients that did not subscribe.
    pub(crate) fn normal(&self) -> OutputLimit {
        self.0[0]
    }

    /// The class of those that did.
    pub(crate) fn pubsub(&self) -> OutputLimit {
        self.0[2]
    }

    /// With what `text` says of some classes, in Redis's words when it says it wrongly.
    ///
    /// # Errors
    /// What is wrong.
    pub fn changed(mut self, text: &str) -> Result<OutputLimits, String> {
        let words: Vec<&str> = text.split(' ').collect();
        if !words.len().is_multiple_of(4) {
            return Err("Wrong number of arguments in buffer limit configuration.".to_owned());
        }
        for words in words.chunks(4) {
            let class = if words[0].eq_ignore_ascii_case("replica") { "slave" } else { words[0] };
            let Some(class) = CLASSES.iter().position(|name| name.eq_ignore_ascii_case(class)) else {
                return Err("Invalid client class specified in buffer limit configuration.".to_owned());
            };
            let limits = (
                crate::settings::parse_bytes(words[1]),
                crate::settings::parse_bytes(words[2]),
                words[3].parse(),
            );
            let (Ok(hard_bytes), Ok(soft_bytes), Ok(soft_seconds)) = limits else {
                return Err(
                    "Error in hard, soft or soft_seconds setting in buffer limit configuration.".to_owned()
                );
            };
            self.0[class] = OutputLimit { hard_bytes, soft_bytes, soft_seconds };
        }
        Ok(self)
    }
}

impl fmt::Display for OutputLimits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let classes: Vec<String> = CLASSES
            .iter()
            .zip(&self.0)
            .map(|(name, limit)| {
                format!("{name} {} {} {}", limit.hard_bytes, limit.soft_bytes, limit.soft_seconds)
            })
            .collect();
        f.write_str(&classes.join(" "))
    }
}

impl FromStr for OutputLimits {
    type Err = String;
    fn from_str(text: &str) -> Result<OutputLimits, String> {
        OutputLimits::default().changed(text)
    }
}

/// A value in a configuration file: text, or a bare number.
#[derive(Deserialize)]
#[serde(untagged)]
enum Word {
    Number(u64),
    Text(String),
}

/// Read from a word, and shown as it is written.
macro_rules! written_as_a_word {
    ($($type:ident),*) => {$(
        impl TryFrom<Word> for $type {
            type Error = String;
            fn try_from(word: Word) -> Result<$type, String> {
                match word {
                    Word::Number(number) => number.to_string().parse(),
                    Word::Text(text) => text.parse(),
                }
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    )*};
}

written_as_a_word!(Quota, Networks, OutputLimits);

/// Why a client is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Refusal {
    /// There are `maxclients`.
    Full,
    /// There are too many of its address.
    Address,
    /// There are too many of its name.
    Name,
    /// Too many came within a second.
    Rate,
    /// Too many of its address came within a second.
    AddressRate,
}

impl Refusal {
    pub(crate) const ALL: [Refusal; 5] =
        [Refusal::Full, Refusal::Address, Refusal::Name, Refusal::Rate, Refusal::AddressRate];

    /// What the client is told.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Refusal::Full => "ERR max number of clients reached",
            Refusal::Address => "ERR max number of clients of this address reached (maxclients-per-address)",
            Refusal::Name => "ERR max number of clients of this name reached (maxclients-per-name)",
            Refusal::Rate => "ERR too many new connections, try again in a second (accept-rate)",
            Refusal::AddressRate => {
                "ERR too many new connections of this address, try again in a second (accept-rate-per-address)"
            }
        }
    }

    /// One word for it, for statistics.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Refusal::Full => "maxclients",
            Refusal::Address => "address",
            Refusal::Name => "name",
            Refusal::Rate => "rate",
            Refusal::AddressRate => "address_rate",
        }
    }
}

/// The connections of a port, by what limits them.
#[derive(Debug, Default)]
pub(crate) struct Limits {
    state: Mutex<State>,
    refused: [AtomicU64; Refusal::ALL.len()],
}

#[derive(Debug, Default)]
struct State {
    connections: u64,
    addresses: HashMap<IpAddr, Address>,
    /// Addresses may be remembered up to here before old ones are looked for.
    remember: usize,
    names: HashMap<Vec<u8>, u64>,
    rate: Bucket,
}

#[derive(Debug, Default)]
struct Address {
    connections: u64,
    rate: Bucket,
}

/// A bucket of tokens: full at first, a token is taken for each connection, and `rate` of them come in a second.
#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    /// Tokens that are missing, in millionths, as of `at`.
    missing: u64,
    at: Option<Instant>,
}

const TOKEN: u64 = 1_000_000;

impl Bucket {
    fn refill(&mut self, rate: u64, now: Instant) {
        let micros = self
            .at
            .map_or(0, |at| u64::try_from(now.saturating_duration_since(at).as_micros()).unwrap_or(u64::MAX));
        self.missing = self.missing.saturating_sub(micros.saturating_mul(rate));
        self.at = Some(now);
    }

    /// Whether there is a token after the time that went by; a rate of 0 is no limit.
    fn has(&mut self, rate: u64, now: Instant) -> bool {
        if rate == 0 {
            return true;
        }
        self.refill(rate, now);
        self.missing.saturating_add(TOKEN) <= rate.saturating_mul(TOKEN)
    }

    fn take(&mut self, rate: u64) {
        if rate > 0 {
            self.missing += TOKEN;
        }
    }

    /// Whether it is as good as new.
    fn is_full(&self, now: Instant) -> bool {
        self.at.is_none_or(|at| now.saturating_duration_since(at) > Duration::from_secs(1))
    }
}

/// Who counts as one client.
fn client_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let network = u128::from(v6) & !u128::from(u64::MAX);
            // Loopback and its like have no network.
            if network == 0 { v6.into() } else { Ipv6Addr::from(network).into() }
        }
        v4 => v4,
    }
}

impl Limits {
    /// Lets a connection in, or says why not. Who is let in counts until it leaves.
    pub(crate) fn admit(
        &self,
        rules: &Rules,
        maxclients: u64,
        address: IpAddr,
        now: Instant,
    ) -> Result<(), Refusal> {
        let admitted = self.state.lock().admit(rules, maxclients, address, now);
        admitted.inspect_err(|refusal| self.count(*refusal))
    }

    /// A connection that was let in has ended; `name` is the last one it had.
    pub(crate) fn leave(&self, address: IpAddr, name: &[u8]) {
        let mut state = self.state.lock();
        state.connections = state.connections.saturating_sub(1);
        if let Some(entry) = state.addresses.get_mut(&client_of(address)) {
            entry.connections = entry.connections.saturating_sub(1);
            if entry.connections == 0 && entry.rate.at.is_none() {
                state.addresses.remove(&client_of(address));
            }
        }
        state.drop_name(name);
    }

    /// A connection changes its name, unless there are too many of that name. No name is an empty one.
    pub(crate) fn rename(
        &self,
        rules: &Rules,
        maxclients: u64,
        old: &[u8],
        new: &[u8],
    ) -> Result<(), Refusal> {
        if old == new {
            return Ok(());
        }
        let mut state = self.state.lock();
        if !new.is_empty() {
            let count = state.names.get(new).copied().unwrap_or(0);
            if count >= rules.per_name.of(maxclients) {
                drop(state);
                self.count(Refusal::Name);
                return Err(Refusal::Name);
            }
            *state.names.entry(new.to_vec()).or_default() += 1;
        }
        state.drop_name(old);
        Ok(())
    }

    /// How many were refused so far, and why.
    pub(crate) fn refused(&self) -> impl Iterator<Item = (Refusal, u64)> {
        Refusal::ALL.into_iter().zip(self.refused.iter().map(|count| count.load(Ordering::Relaxed)))
    }

    /// Forgets how many were refused.
    pub(crate) fn reset_counts(&self) {
        self.refused.iter().for_each(|count| count.store(0, Ordering::Relaxed));
    }

    fn count(&self, refusal: Refusal) {
        self.refused[refusal as usize].fetch_add(1, Ordering::Relaxed);
    }
}

impl State {
    fn admit(
        &mut self,
        rules: &Rules,
        maxclients: u64,
        address: IpAddr,
        now: Instant,
    ) -> Result<(), Refusal> {
        let trusted = rules.trusted.contain(address);
        let reserve = if trusted { 0 } else { rules.reserve.min(maxclients / LARGEST_RESERVE) };
        if self.connections >= maxclients.saturating_sub(reserve) {
            return Err(Refusal::Full);
        }
        let (rate, own_rate) = match trusted {
            true => (0, 0),
            false => (rules.accept_rate, rules.accept_rate_per_address),
        };
        self.forget_old_addresses(now);
        let own = self.addresses.entry(client_of(address)).or_default();
        let refusal = if !trusted && own.connections >= rules.per_address.of(maxclients) {
            Some(Refusal::Address)
        } else if !own.rate.has(own_rate, now) {
            Some(Refusal::AddressRate)
        } else if !self.rate.has(rate, now) {
            Some(Refusal::Rate)
        } else {
            None
        };
        if let Some(refusal) = refusal {
            return Err(refusal);
        }
        own.rate.take(own_rate);
        own.connections += 1;
        self.rate.take(rate);
        self.connections += 1;
        Ok(())
    }

    /// Now and then, so that it costs little: addresses without connections that may come as fast as new ones.
    fn forget_old_addresses(&mut self, now: Instant) {
        if self.addresses.len() < self.remember.max(REMEMBERED_ADDRESSES) {
            return;
        }
        self.addresses.retain(|_, address| address.connections > 0 || !address.rate.is_full(now));
        self.remember = 2 * self.addresses.len();
    }

    fn drop_name(&mut self, name: &[u8]) {
        if let Some(count) = self.names.get_mut(name) {
            *count -= 1;
            if *count == 0 {
                self.names.remove(name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAXCLIENTS: u64 = 1_000;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn rules() -> Rules {
        Rules { per_name: Quota::None, ..Rules::default() }
    }

    /// How many of `tries` connections of an address are let in, and what the last one was told.
    fn come(
        limits: &Limits,
        rules: &Rules,
        from: &str,
        tries: usize,
        now: Instant,
    ) -> (usize, Result<(), Refusal>) {
        let results: Vec<_> =
            (0..tries).map(|_| limits.admit(rules, MAXCLIENTS, address(from), now)).collect();
        (results.iter().filter(|result| result.is_ok()).count(), results[tries - 1])
    }

    #[test]
    fn the_last_connections_are_for_operators() {
        let (limits, rules, now) = (Limits::default(), rules(), Instant::now());
        assert_eq!(come(&limits, &rules, "10.0.0.1", 2_000, now), (990, Err(Refusal::Full)));
        assert_eq!(come(&limits, &rules, "127.0.0.2", 1, now), (0, Err(Refusal::Full)));
        assert_eq!(come(&limits, &rules, "127.0.0.1", 9, now), (9, Ok(())));
        assert_eq!(come(&limits, &rules, "::ffff:127.0.0.1", 9, now), (1, Err(Refusal::Full)));
        limits.leave(address("10.0.0.1"), b"");
        assert_eq!(come(&limits, &rules, "10.0.0.1", 1, now), (0, Err(Refusal::Full)));
        assert_eq!(come(&limits, &rules, "::1", 2, now), (1, Err(Refusal::Full)));
        // With few connections there is nothing to reserve, and `maxclients` is what it says.
        let few = Limits::default();
        let admitted = (0..20).filter(|_| few.admit(&rules, 10, address("10.0.0.1"), now).is_ok()).count();
        assert_eq!(admitted, 10);
    }

    #[test]
    fn an_address_has_its_quota() {
        let (limits, now) = (Limits::default(), Instant::now());
        let rules = Rules { per_address: Quota::Percent(2), ..rules() };
        assert_eq!(come(&limits, &rules, "10.0.0.1", 30, now), (20, Err(Refusal::Address)));
        assert_eq!(come(&limits, &rules, "10.0.0.2", 20, now), (20, Ok(())));
        limits.leave(address("10.0.0.1"), b"");
        assert_eq!(come(&limits, &rules, "10.0.0.1", 2, now), (1, Err(Refusal::Address)));
        // A host with IPv6 has a whole network of addresses.
        assert_eq!(come(&limits, &rules, "2001:db8::1", 20, now), (20, Ok(())));
        assert_eq!(come(&limits, &rules, "2001:db8::2", 1, now), (0, Err(Refusal::Address)));
        assert_eq!(come(&limits, &rules, "2001:db8:0:1::1", 1, now), (1, Ok(())));
        assert_eq!(come(&limits, &rules, "127.0.0.1", 100, now), (100, Ok(())), "trusted");
        let refused: Vec<_> = limits.refused().filter(|(_, count)| *count > 0).collect();
        assert_eq!(refused, [(Refusal::Address, 12)]);
        limits.reset_counts();
        assert!(limits.refused().all(|(_, count)| count == 0));
    }

    #[test]
    fn a_name_has_its_quota_wherever_it_comes_from() {
        let limits = Limits::default();
        let rules = Rules { per_name: Quota::Count(2), ..rules() };
        let rename = |old: &[u8], new: &[u8]| limits.rename(&rules, MAXCLIENTS, old, new);
        assert_eq!((rename(b"", b"web"), rename(b"", b"web")), (Ok(()), Ok(())));
        assert_eq!(rename(b"", b"web"), Err(Refusal::Name));
        assert_eq!(rename(b"", b"batch"), Ok(()));
        assert_eq!(rename(b"web", b"web"), Ok(()), "who has the name keeps it");
        assert_eq!(rename(b"batch", b"web"), Err(Refusal::Name));
        assert_eq!(rename(b"web", b"other"), Ok(()));
        assert_eq!(rename(b"batch", b"web"), Ok(()));
        assert_eq!(rename(b"web", b""), Ok(()));
        limits.leave(address("10.0.0.1"), b"web");
        assert_eq!((rename(b"", b"web"), rename(b"", b"web")), (Ok(()), Ok(())));
        assert!((0..10).all(|_| rename(b"", b"") == Ok(())), "no name is nobody's");
        limits.leave(address("10.0.0.1"), b"web");
        limits.leave(address("10.0.0.1"), b"web");
        limits.leave(address("10.0.0.1"), b"other");
        assert!(limits.state.lock().names.is_empty());
    }

    #[test]
    fn new_connections_have_a_rate() {
        let (limits, start) = (Limits::default(), Instant::now());
        let rules = Rules { accept_rate: 100, accept_rate_per_address: 10, ..rules() };
        assert_eq!(come(&limits, &rules, "10.0.0.1", 50, start), (10, Err(Refusal::AddressRate)));
        for n in 2..=10 {
            assert_eq!(come(&limits, &rules, &format!("10.0.0.{n}"), 10, start), (10, Ok(())));
        }
        assert_eq!(come(&limits, &rules, "10.0.0.11", 1, start), (0, Err(Refusal::Rate)));
        assert_eq!(come(&limits, &rules, "127.0.0.1", 50, start), (50, Ok(())), "trusted");
        // Tokens come back one by one.
        let later = start + Duration::from_millis(250);
        assert_eq!(come(&limits, &rules, "10.0.0.1", 50, later), (2, Err(Refusal::AddressRate)));
        assert_eq!(come(&limits, &rules, "10.0.0.11", 10, later), (10, Ok(())));
        // And never more than a second's.
        let much_later = start + Duration::from_secs(3_600);
        assert_eq!(come(&limits, &rules, "10.0.0.1", 50, much_later), (10, Err(Refusal::AddressRate)));
    }

    #[test]
    fn addresses_that_went_are_forgotten() {
        let (limits, start) = (Limits::default(), Instant::now());
        let rules = Rules { accept_rate_per_address: 1, ..rules() };
        for n in 0..100_000u32 {
            let address = IpAddr::from(n.to_be_bytes());
            let now = start + Duration::from_millis(n.into());
            limits.admit(&rules, MAXCLIENTS, address, now).unwrap();
            limits.leave(address, b"");
        }
        let left = limits.state.lock().addresses.len();
        assert!(left <= 4 * REMEMBERED_ADDRESSES, "{left}");
        // Without a rate nothing is remembered of who went.
        let limits = Limits::default();
        limits.admit(&Rules::default(), MAXCLIENTS, address("10.0.0.1"), start).unwrap();
        limits.leave(address("10.0.0.1"), b"");
        assert!(limits.state.lock().addresses.is_empty());
    }

    #[test]
    fn settings_are_written_as_they_are_read() {
        for text in ["0", "5", "90%", "100%"] {
            assert_eq!(text.parse::<Quota>().unwrap().to_string(), text);
        }
        for text in ["", "-1", "0%", "101%", "x", "5 %"] {
            assert!(text.parse::<Quota>().is_err(), "{text}");
        }
        for text in ["", "127.0.0.1 ::1", "10.0.0.0/8 2001:db8::/32"] {
            assert_eq!(text.parse::<Networks>().unwrap().to_string(), text);
        }
        for text in ["x", "10.0.0.0/33", "::1/129", "10.0.0.1,10.0.0.2"] {
            assert!(text.parse::<Networks>().is_err(), "{text}");
        }
        let networks: Networks = "10.0.0.0/8 0.0.0.0/32 ::/0".parse().unwrap();
        assert!(networks.contain(address("10.9.8.7")) && networks.contain(address("2001:db8::1")));
        assert!(!networks.contain(address("11.0.0.1")));
        assert!("0.0.0.0/0".parse::<Networks>().unwrap().contain(address("1.2.3.4")));
    }

    /// The texts are Redis's.
    #[test]
    fn output_limits_are_those_of_redis() {
        let limits = OutputLimits::default();
        assert_eq!(limits.to_string(), "normal 0 0 0 slave 268435456 67108864 60 pubsub 33554432 8388608 60");
        let changed = limits.changed("normal 10mb 5MB 60 replica 1 2 3").unwrap();
        assert_eq!(changed.to_string(), "normal 10485760 5242880 60 slave 1 2 3 pubsub 33554432 8388608 60");
        for (text, error) in [
            ("", "Wrong number of arguments in buffer limit configuration."),
            ("normal 1 2", "Wrong number of arguments in buffer limit configuration."),
            ("master 1 2 3", "Invalid client class specified in buffer limit configuration."),
            ("normal x 2 3", "Error in hard, soft or soft_seconds setting in buffer limit configuration."),
            ("normal 1 2 -1", "Error in hard, soft or soft_seconds setting in buffer limit configuration."),
        ] {
            assert_eq!(limits.changed(text), Err(error.to_owned()), "{text}");
        }
    }
}
