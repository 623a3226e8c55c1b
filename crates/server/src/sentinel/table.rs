//! The commands of the Sentinel port. Those that every port has are the data port's rows.

use kvorum_keyspace::introspect::Table;
use kvorum_keyspace::{Command, Flags, lookup};

/// What COMMAND speaks of.
pub(super) const TABLE: Table = Table { all: || all().collect(), lookup: find };

/// Commands that are as on a data port.
const SHARED: [&str; 10] =
    ["ping", "info", "role", "hello", "auth", "client", "command", "shutdown", "quit", "reset"];

fn all() -> impl Iterator<Item = &'static Command> {
    SHARED.iter().filter_map(|name| lookup(name.as_bytes())).chain(OWN)
}

/// The command of that name, in any case.
pub(super) fn find(name: &[u8]) -> Option<&'static Command> {
    let own = OWN.iter().find(|row| row.name.as_bytes().eq_ignore_ascii_case(name));
    own.or_else(|| lookup(name).filter(|row| SHARED.contains(&row.name)))
}

const PUBSUB: Flags = Flags::PUBSUB.and(Flags::NOSCRIPT).and(Flags::LOADING).and(Flags::STALE);
const ACL: Flags = Flags::NOSCRIPT.and(Flags::LOADING).and(Flags::STALE);

const fn pubsub(name: &'static str, arity: i8, summary: &'static str) -> Command {
    Command { name, arity, flags: PUBSUB, group: "pubsub", since: "2.0.0", summary, ..Command::ROW }
}

const fn of_sentinel(name: &'static str, arity: i8, since: &'static str, summary: &'static str) -> Command {
    Command { name, arity, flags: Flags::ADMIN, group: "sentinel", since, summary, ..Command::ROW }
}

static OWN: &[Command] = &[
    pubsub("subscribe", -2, "Listen for messages published to the given channels"),
    pubsub("psubscribe", -2, "Listen for messages published to channels matching the given patterns"),
    pubsub("unsubscribe", -1, "Stop listening for messages posted to the given channels"),
    pubsub("punsubscribe", -1, "Stop listening for messages posted to channels matching the given patterns"),
    Command {
        name: "publish",
        arity: 3,
        flags: Flags::PUBSUB.and(Flags::LOADING).and(Flags::STALE).and(Flags::FAST),
        group: "pubsub",
        since: "2.0.0",
        summary: "Post a message to a channel",
        ..Command::ROW
    },
    Command {
        name: "acl",
        arity: -2,
        group: "server",
        since: "6.0.0",
        summary: "A container for Access List Control commands ",
        subcommands: &[
            Command {
                name: "acl|whoami",
                arity: 2,
                flags: ACL,
                group: "server",
                since: "6.0.0",
                summary: "Return the name of the user associated to the current connection",
                ..Command::ROW
            },
            Command {
                name: "acl|users",
                arity: 2,
                flags: ACL.and(Flags::ADMIN),
                group: "server",
                since: "6.0.0",
                summary: "List the username of all the configured ACL rules",
                ..Command::ROW
            },
        ],
        ..Command::ROW
    },
    Command {
        name: "sentinel",
        arity: -2,
        flags: Flags::ADMIN,
        group: "sentinel",
        since: "2.8.4",
        summary: "A container for Sentinel commands",
        subcommands: SUBCOMMANDS,
        ..Command::ROW
    },
];

static SUBCOMMANDS: &[Command] = &[
    of_sentinel("sentinel|ckquorum", 3, "2.8.4", "Check for a Sentinel quorum"),
    of_sentinel("sentinel|config", -3, "6.2.0", "Configure Sentinel"),
    of_sentinel("sentinel|debug", -2, "7.0.0", "List or update the current configurable parameters"),
    of_sentinel("sentinel|failover", 3, "2.8.4", "Force a failover"),
    of_sentinel("sentinel|flushconfig", 2, "2.8.4", "Rewrite configuration file"),
    of_sentinel("sentinel|get-master-addr-by-name", 3, "2.8.4", "Get port and address of a master"),
    Command {
        name: "sentinel|help",
        arity: 2,
        flags: Flags::LOADING.and(Flags::STALE),
        group: "sentinel",
        since: "6.2.0",
        summary: "Show helpful text about the different subcommands",
        ..Command::ROW
    },
    of_sentinel("sentinel|info-cache", -3, "3.2.0", "Get cached INFO from the instances in the deployment"),
    of_sentinel("sentinel|is-master-down-by-addr", 6, "2.8.4", "Check if a master is down"),
    of_sentinel("sentinel|master", 3, "2.8.4", "Shows the state of a master"),
    of_sentinel("sentinel|masters", 2, "2.8.4", "List the monitored masters"),
    of_sentinel("sentinel|monitor", 6, "2.8.4", "Start monitoring"),
    of_sentinel("sentinel|myid", 2, "6.2.0", "Get the Sentinel instance ID"),
    of_sentinel("sentinel|pending-scripts", 2, "2.8.4", "Get information about pending scripts"),
    of_sentinel("sentinel|remove", 3, "2.8.4", "Stop monitoring"),
    of_sentinel("sentinel|replicas", 3, "5.0.0", "List the monitored replicas"),
    of_sentinel("sentinel|reset", 3, "2.8.4", "Reset masters by name pattern"),
    of_sentinel("sentinel|sentinels", 3, "2.8.4", "List the Sentinel instances"),
    of_sentinel("sentinel|set", -5, "2.8.4", "Change the configuration of a monitored master"),
    of_sentinel("sentinel|simulate-failure", -3, "3.2.0", "Simulate failover scenarios"),
    of_sentinel("sentinel|slaves", 3, "2.8.0", "List the monitored slaves"),
];
