//! The slow log of a port: the last commands that ran for long, for SLOWLOG.
//!
//! Times are those of running, as in Redis: how long a command waited for the log, for a majority or for its client is not part of them.
//! What is remembered of a command is bounded, and secrets are left out.

use crate::port::wall_time;
use kvorum_keyspace::{Args, Command, Flags};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

/// Arguments remembered of a command.
const MAX_ARGS: usize = 32;
/// Bytes remembered of an argument.
const MAX_ARG_BYTES: usize = 128;
/// What stands for a secret.
pub(crate) const REDACTED: &[u8] = b"(redacted)";

/// A command that ran for long.
#[derive(Debug)]
pub(crate) struct SlowCommand {
    /// Which.
    pub(crate) command: &'static Command,
    /// Its arguments, shortened.
    args: Vec<Vec<u8>>,
    /// For how long it ran.
    pub(crate) took: Duration,
}

impl SlowCommand {
    /// Notes a command.
    pub(crate) fn new(command: &'static Command, args: Args<'_>, took: Duration) -> SlowCommand {
        let shown = if args.len() > MAX_ARGS { MAX_ARGS - 1 } else { args.len() };
        let mut kept: Vec<Vec<u8>> = (0..shown)
            .map(|n| if is_secret(command, args, n) { REDACTED.to_vec() } else { cut(args[n]) })
            .collect();
        if shown < args.len() {
            kept.push(format!("... ({} more arguments)", args.len() - shown).into_bytes());
        }
        SlowCommand { command, args: kept, took }
    }
}

fn cut(arg: &[u8]) -> Vec<u8> {
    let mut kept = arg[..arg.len().min(MAX_ARG_BYTES)].to_vec();
    if arg.len() > MAX_ARG_BYTES {
        kept.extend_from_slice(format!("... ({} more bytes)", arg.len() - MAX_ARG_BYTES).as_bytes());
    }
    kept
}

/// Whether an argument is a password, or the user name beside one.
pub(crate) fn is_secret(command: &Command, args: Args<'_>, n: usize) -> bool {
    const SECRET_SETTINGS: [&[u8]; 4] = [b"requirepass", b"masterauth", b"masteruser", b"tls-key-file-pass"];
    match command.name {
        "auth" => n > 0,
        "hello" => is_login_of_hello(args, n),
        "config|set" => {
            n >= 3 && n % 2 == 1 && SECRET_SETTINGS.iter().any(|name| args[n - 1].eq_ignore_ascii_case(name))
        }
        "migrate" => {
            let is = |at: usize, word: &[u8]| args[at].eq_ignore_ascii_case(word);
            n > 5 && (is(n - 1, b"auth") || is(n - 1, b"auth2") || n > 6 && is(n - 2, b"auth2"))
        }
        "acl|setuser" | "acl|deluser" | "acl|getuser" => n >= 2,
        _ => false,
    }
}

/// HELLO [protover [AUTH user password] [SETNAME name]]
fn is_login_of_hello(args: Args<'_>, index: usize) -> bool {
    let mut at = 2;
    while let Some(option) = args.get(at) {
        if option.eq_ignore_ascii_case(b"auth") {
            if (at + 1..=at + 2).contains(&index) {
                return true;
            }
            at += 3;
        } else if option.eq_ignore_ascii_case(b"setname") {
            at += 2;
        } else {
            return false;
        }
    }
    false
}

/// One line of the slow log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Entry {
    /// Number of the entry, never used twice while the port lives.
    pub(crate) id: u64,
    /// When the command ended, seconds since the Unix epoch.
    pub(crate) at_s: u64,
    /// How long it ran.
    pub(crate) took: Duration,
    /// What remains of its arguments.
    pub(crate) args: Vec<Vec<u8>>,
    /// Who sent it.
    pub(crate) peer: SocketAddr,
    /// That client's name.
    pub(crate) name: Vec<u8>,
}

/// The slow log.
#[derive(Debug, Default)]
pub(crate) struct SlowLog(Mutex<Entries>);

#[derive(Debug, Default)]
struct Entries {
    next_id: u64,
    /// The newest first.
    list: VecDeque<Entry>,
}

impl SlowLog {
    /// Adds a command, and forgets the oldest beyond `most`.
    pub(crate) fn push(&self, slow: SlowCommand, peer: SocketAddr, name: &[u8], most: usize) {
        if slow.command.flags.has(Flags::SKIP_SLOWLOG) {
            return;
        }
        let mut entries = self.0.lock();
        let id = entries.next_id;
        entries.next_id += 1;
        let SlowCommand { args, took, .. } = slow;
        let entry = Entry { id, at_s: wall_time().as_secs(), took, args, peer, name: name.to_vec() };
        entries.list.push_front(entry);
        entries.list.truncate(most);
    }

    /// The newest entries, the newest first.
    pub(crate) fn newest(&self, count: usize) -> Vec<Entry> {
        self.0.lock().list.iter().take(count).cloned().collect()
    }

    /// Number of entries.
    pub(crate) fn len(&self) -> usize {
        self.0.lock().list.len()
    }

    /// Forgets all entries; their numbers are not used again.
    pub(crate) fn reset(&self) {
        self.0.lock().list.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvorum_keyspace::lookup;

    fn args_of(words: &[&str]) -> Vec<String> {
        let args: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
        let command = lookup(args[0]).unwrap().resolve(&args).unwrap();
        let slow = SlowCommand::new(command, &args, Duration::ZERO);
        slow.args.into_iter().map(|arg| String::from_utf8(arg).unwrap()).collect()
    }

    #[test]
    fn arguments_are_shortened_as_in_redis() {
        let long = "x".repeat(130);
        let mut words = vec!["MSET", &long];
        words.extend(["a"; 30]);
        let kept = args_of(&words);
        assert_eq!(kept.len(), 32);
        assert_eq!(kept[1], format!("{}... (2 more bytes)", "x".repeat(128)));
        assert_eq!(kept[31], "a");
        words.push("b");
        let kept = args_of(&words);
        assert_eq!((kept.len(), kept[31].as_str()), (32, "... (2 more arguments)"));
    }

    #[test]
    fn secrets_are_left_out() {
        assert_eq!(args_of(&["AUTH", "user", "pass"]), ["AUTH", "(redacted)", "(redacted)"]);
        assert_eq!(
            args_of(&["HELLO", "3", "AUTH", "user", "pass", "SETNAME", "me"]),
            ["HELLO", "3", "AUTH", "(redacted)", "(redacted)", "SETNAME", "me"]
        );
        assert_eq!(
            args_of(&["CONFIG", "SET", "timeout", "1", "requirepass", "secret"]),
            ["CONFIG", "SET", "timeout", "1", "requirepass", "(redacted)"]
        );
    }

    #[test]
    fn the_oldest_go_and_numbers_stay_unique() {
        let log = SlowLog::default();
        let get = lookup(b"get").unwrap();
        let peer = "127.0.0.1:1".parse().unwrap();
        let push = |most| log.push(SlowCommand::new(get, &[b"get", b"k"], Duration::ZERO), peer, b"me", most);
        (0..3).for_each(|_| push(2));
        assert_eq!(log.newest(9).iter().map(|entry| entry.id).collect::<Vec<_>>(), [2, 1]);
        assert_eq!(log.newest(1).len(), 1);
        log.reset();
        push(2);
        assert_eq!(log.newest(9)[0].id, 3);
        push(0);
        assert_eq!(log.len(), 0);
    }
}
