//! MONITOR: every command that a port runs, told to the clients that asked for it.
//!
//! Contract: telling never waits. Each monitor has a feed of bounded size that its connection empties; when a monitor does not
//! keep up and its feed is full, it is cut off, as Redis's output buffer limits would have it, rather than waited for. Without
//! monitors a command costs one load.
//!
//! As Redis: administrative commands are not shown, nor are those that were refused, and passwords are not either.

use crate::clients::Client;
use crate::port::wall_time;
use crate::slowlog::{REDACTED, is_secret};
use kvorum_keyspace::{Args, Command, Flags};
use parking_lot::Mutex;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes that may wait for a monitor.
pub(crate) const FEED_BYTES: usize = 4 * 1024 * 1024;

/// Lines that wait for one monitor.
#[derive(Debug, Default)]
pub(crate) struct Feed(Mutex<Vec<u8>>);

impl Feed {
    /// Adds a line; `false` when there is no room.
    fn push(&self, line: &[u8]) -> bool {
        let mut lines = self.0.lock();
        let fits = lines.len() + line.len() <= FEED_BYTES;
        if fits {
            lines.extend_from_slice(line);
        }
        fits
    }

    /// Takes everything.
    pub(crate) fn take(&self) -> Vec<u8> {
        std::mem::take(&mut self.0.lock())
    }

    /// Bytes that wait.
    pub(crate) fn len(&self) -> usize {
        self.0.lock().len()
    }
}

/// The monitors of a port.
#[derive(Debug, Default)]
pub(crate) struct Monitors {
    count: AtomicUsize,
    live: Mutex<Vec<Arc<Client>>>,
}

impl Monitors {
    /// From now on this client is told.
    pub(crate) fn enter(&self, client: &Arc<Client>) {
        let mut live = self.live.lock();
        live.push(Arc::clone(client));
        self.count.store(live.len(), Ordering::Release);
    }

    /// It is told no more.
    pub(crate) fn leave(&self, client: &Client) {
        if self.is_empty() {
            return;
        }
        let mut live = self.live.lock();
        live.retain(|other| other.id != client.id);
        self.count.store(live.len(), Ordering::Release);
    }

    /// Whether nobody has to be told.
    pub(crate) fn is_empty(&self) -> bool {
        self.count.load(Ordering::Acquire) == 0
    }

    /// `client` runs a command. Returns how many monitors did not keep up.
    pub(crate) fn tell(&self, client: &Client, db: u16, command: &Command, args: Args<'_>) -> u64 {
        if command.flags.has(Flags::ADMIN) || command.flags.has(Flags::SKIP_MONITOR) {
            return 0;
        }
        let line = line(client, db, command, args);
        let mut cut = 0;
        for monitor in self.live.lock().iter() {
            if monitor.feed.push(&line) {
                monitor.tell();
            } else if !monitor.is_killed() {
                monitor.kill();
                cut += 1;
            }
        }
        cut
    }
}

fn line(client: &Client, db: u16, command: &Command, args: Args<'_>) -> Vec<u8> {
    let now = wall_time();
    let mut line = Vec::with_capacity(64 + args.iter().map(|arg| arg.len() + 3).sum::<usize>());
    // Writing to a Vec takes everything.
    let _ = write!(line, "+{}.{:06} [{db} {}]", now.as_secs(), now.subsec_micros(), client.peer);
    for (index, arg) in args.iter().enumerate() {
        line.push(b' ');
        quote(if is_secret(command, args, index) { REDACTED } else { arg }, &mut line);
    }
    line.extend_from_slice(b"\r\n");
    line
}

/// A string in quotes, with what cannot be printed in escapes: Redis's `sdscatrepr`.
fn quote(bytes: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    for &byte in bytes {
        match byte {
            b'\\' | b'"' => out.extend([b'\\', byte]),
            b'\n' => out.extend(b"\\n"),
            b'\r' => out.extend(b"\\r"),
            b'\t' => out.extend(b"\\t"),
            7 => out.extend(b"\\a"),
            8 => out.extend(b"\\b"),
            b' '..=b'~' => out.push(byte),
            _ => {
                let _ = write!(out, "\\x{byte:02x}");
            }
        }
    }
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clients::Clients;
    use kvorum_keyspace::lookup;

    fn told(words: &[&[u8]]) -> String {
        let (clients, monitors) = (Clients::default(), Monitors::default());
        let address = "127.0.0.1:60866".parse().unwrap();
        let (monitor, client) = (clients.enter(address, address, 3), clients.enter(address, address, 4));
        assert!(monitors.is_empty());
        monitors.enter(&monitor);
        assert!(!monitors.is_empty());
        let command = lookup(words[0]).unwrap().resolve(words).unwrap();
        assert_eq!(monitors.tell(&client, 2, command, words), 0);
        monitors.leave(&monitor);
        assert!(monitors.is_empty());
        let line = String::from_utf8(monitor.feed.take()).unwrap();
        // Without the time.
        line.split_once(' ').map(|(_, rest)| rest.to_owned()).unwrap_or_default()
    }

    #[test]
    fn lines_are_those_of_redis() {
        assert_eq!(
            told(&[b"SET", b"a", b"b\0\n\"q\\\xff\x07\x08\t\r~"]),
            "[2 127.0.0.1:60866] \"SET\" \"a\" \"b\\x00\\n\\\"q\\\\\\xff\\a\\b\\t\\r~\"\r\n"
        );
        assert_eq!(told(&[b"get", b""]), "[2 127.0.0.1:60866] \"get\" \"\"\r\n");
    }

    #[test]
    fn passwords_and_administration_are_not_shown() {
        assert_eq!(told(&[b"AUTH", b"x"]), "[2 127.0.0.1:60866] \"AUTH\" \"(redacted)\"\r\n");
        assert_eq!(
            told(&[b"HELLO", b"3", b"SETNAME", b"auth", b"AUTH", b"u", b"p", b"SETNAME", b"x"]),
            "[2 127.0.0.1:60866] \"HELLO\" \"3\" \"SETNAME\" \"auth\" \"AUTH\" \"(redacted)\" \"(redacted)\" \
             \"SETNAME\" \"x\"\r\n"
        );
        assert_eq!(told(&[b"CONFIG", b"SET", b"requirepass", b"x"]), "");
        let set: &[&[u8]] = &[b"CONFIG", b"SET", b"maxclients", b"requirepass", b"requirePass", b"x"];
        let command = lookup(b"config").unwrap().resolve(set).unwrap();
        assert!(is_secret(command, set, 5) && !is_secret(command, set, 3) && !is_secret(command, set, 4));
    }

    #[test]
    fn a_monitor_that_does_not_keep_up_is_cut_off_and_counted_once() {
        let (clients, monitors) = (Clients::default(), Monitors::default());
        let address = "127.0.0.1:1".parse().unwrap();
        let (slow, quick) = (clients.enter(address, address, 3), clients.enter(address, address, 4));
        monitors.enter(&slow);
        monitors.enter(&quick);
        let value = vec![b'x'; FEED_BYTES / 4];
        let set: &[&[u8]] = &[b"SET", b"k", &value];
        let cut: u64 = (0..10)
            .map(|_| {
                let cut = monitors.tell(&quick, 0, lookup(b"set").unwrap(), set);
                quick.feed.take();
                cut
            })
            .sum();
        assert!(slow.is_killed() && !quick.is_killed());
        assert_eq!(cut, 1);
        assert!(slow.feed.len() <= FEED_BYTES);
    }
}
