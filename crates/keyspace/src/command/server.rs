//! Commands about the server. The server runs them; the rows are here.

use super::{Argument, Command, Flags};

pub(super) static COMMANDS: &[Command] = &[
    INFO,
    CONFIG,
    TIME,
    COMMAND,
    ROLE,
    WAIT,
    WAITAOF,
    SHUTDOWN,
    SLOWLOG,
    LATENCY,
    MODULE,
    LASTSAVE,
    SAVE,
    BGSAVE,
    BGREWRITEAOF,
    LOLWUT,
    FAILOVER,
    REPLICAOF,
    SLAVEOF,
    MONITOR,
];

const INFO: Command = Command {
    name: "info",
    arity: -1,
    flags: Flags::LOADING.and(Flags::STALE),
    group: "server",
    since: "1.0.0",
    summary: "Get information and statistics about the server",
    complexity: "O(1)",
    categories: &["@dangerous"],
    tips: &["nondeterministic_output", "request_policy:all_shards", "response_policy:special"],
    history: &[("7.0.0", "Added support for taking multiple section arguments.")],
    arguments: &[Argument::string("section").optional().multiple()],
    ..Command::ROW
};

const CONFIG: Command = Command {
    name: "config",
    arity: -2,
    group: "server",
    since: "2.0.0",
    summary: "A container for server configuration commands",
    complexity: "Depends on subcommand.",
    subcommands: &[
        Command {
            name: "config|resetstat",
            arity: 2,
            flags: Flags::ADMIN.and(Flags::NOSCRIPT).and(Flags::LOADING).and(Flags::STALE),
            group: "server",
            since: "2.0.0",
            summary: "Reset the stats returned by INFO",
            complexity: "O(1)",
            ..Command::ROW
        },
        Command {
            name: "config|help",
            arity: 2,
            flags: Flags::LOADING.and(Flags::STALE),
            group: "server",
            since: "5.0.0",
            summary: "Show helpful text about the different subcommands",
            complexity: "O(1)",
            ..Command::ROW
        },
        Command {
            name: "config|rewrite",
            arity: 2,
            flags: Flags::ADMIN.and(Flags::NOSCRIPT).and(Flags::LOADING).and(Flags::STALE),
            group: "server",
            since: "2.8.0",
            summary: "Rewrite the configuration file with the in memory configuration",
            complexity: "O(1)",
            ..Command::ROW
        },
        Command {
            name: "config|get",
            arity: -3,
            flags: Flags::ADMIN.and(Flags::NOSCRIPT).and(Flags::LOADING).and(Flags::STALE),
            group: "server",
            since: "2.0.0",
            summary: "Get the values of configuration parameters",
            complexity: "O(N) when N is the number of configuration parameters provided",
            history: &[("7.0.0", "Added the ability to pass multiple pattern parameters in one call")],
            arguments: &[Argument::block("parameter", &[Argument::string("parameter")]).multiple()],
            ..Command::ROW
        },
        Command {
            name: "config|set",
            arity: -4,
            flags: Flags::ADMIN.and(Flags::NOSCRIPT).and(Flags::LOADING).and(Flags::STALE),
            group: "server",
            since: "2.0.0",
            summary: "Set configuration parameters to the given values",
            complexity: "O(N) when N is the number of configuration parameters provided",
            tips: &["request_policy:all_nodes", "response_policy:all_succeeded"],
            history: &[("7.0.0", "Added the ability to set multiple parameters in one call.")],
            arguments: &[Argument::block(
                "parameter_value",
                &[Argument::string("parameter"), Argument::string("value")],
            )
            .multiple()],
            ..Command::ROW
        },
    ],
    ..Command::ROW
};

const TIME: Command = Command {
    name: "time",
    arity: 1,
    flags: Flags::LOADING.and(Flags::STALE).and(Flags::FAST),
    group: "server",
    since: "2.6.0",
    summary: "Return the current server time",
    complexity: "O(1)",
    tips: &["nondeterministic_output"],
    ..Command::ROW
};

const COMMAND: Command = Command {
    name: "command",
    arity: -1,
    flags: Flags::LOADING.and(Flags::STALE),
    group: "server",
    since: "2.8.13",
    summary: "Get array of Redis command details",
    complexity: "O(N) where N is the total number of Redis commands",
    categories: &["@connection"],
    tips: &["nondeterministic_output_order"],
    subcommands: &[
        Command {
            name: "command|list",
            arity: -2,
            flags: Flags::LOADING.and(Flags::STALE),
            group: "server",
            since: "7.0.0",
            summary: "Get an array of Redis command names",
            complexity: "O(N) where N is the total number of Redis commands",
            categories: &["@connection"],
            tips: &["nondeterministic_output_order"],
            arguments: &[Argument::one_of(
                "filterby",
                &[
                    Argument::string("module-name").token("MODULE"),
                    Argument::string("category").token("ACLCAT"),
                    Argument::pattern("pattern").token("PATTERN"),
                ],
            )
            .token("FILTERBY")
            .optional()],
            ..Command::ROW
        },
        Command {
            name: "command|getkeys",
            arity: -4,
            flags: Flags::LOADING.and(Flags::STALE),
            group: "server",
            since: "2.8.13",
            summary: "Extract keys given a full Redis command",
            complexity: "O(N) where N is the number of arguments to the command",
            categories: &["@connection"],
            ..Command::ROW
        },
        Command {
            name: "command|getkeysandflags",
            arity: -4,
            flags: Flags::LOADING.and(Flags::STALE),
            group: "server",
            since: "7.0.0",
            summary: "Extract keys and access flags given a full Redis command",
            complexity: "O(N) where N is the number of arguments to the command",
            categories: &["@connection"],
            ..Command::ROW
        },
        Command {
            name: "command|help",
            arity: 2,
            flags: Flags::LOADING.and(Flags::STALE),
            group: "server",
            since: "5.0.0",
            summary: "Show helpful text about the different subcommands",
            complexity: "O(1)",
            categories: &["@connection"],
            ..Command::ROW
        },
        Command {
            name: "command|docs",
            arity: -2,
            flags: Flags::LOADING.and(Flags::STALE),
            group: "server",
            since: "7.0.0",
            summary: "Get array of specific Redis command documentation",
            complexity: "O(N) where N is the number of commands to look up",
            categories: &["@connection"],
            tips: &["nondeterministic_output_order"],
            arguments: &[Argument::string("command-name").optional().multiple()],
            ..Command::ROW
        },
        Command {
            name: "command|count",
            arity: 2,
            flags: Flags::LOADING.and(Flags::STALE),
            group: "server",
            since: "2.8.13",
            summary: "Get total number of Redis commands",
            complexity: "O(1)",
            categories: &["@connection"],
            ..Command::ROW
        },
        Command {
            name: "command|info",
            arity: -2,
            flags: Flags::LOADING.and(Flags::STALE),
            group: "server",
            since: "2.8.13",
            summary: "Get array of specific Redis command details, or all when no argument is given.",
            complexity: "O(N) where N is the number of commands to look up",
            categories: &["@connection"],
            tips: &["nondeterministic_output_order"],
            history: &[("7.0.0", "Allowed to be called with no argument to get info on all commands.")],
            arguments: &[Argument::string("command-name").optional().multiple()],
            ..Command::ROW
        },
    ],
    ..Command::ROW
};

const ROLE: Command = Command {
    name: "role",
    arity: 1,
    flags: Flags::NOSCRIPT.and(Flags::LOADING).and(Flags::STALE).and(Flags::FAST),
    group: "server",
    since: "2.8.12",
    summary: "Return the role of the instance in the context of replication",
    complexity: "O(1)",
    categories: &["@admin", "@dangerous"],
    ..Command::ROW
};

const WAIT: Command = Command {
    name: "wait",
    arity: 3,
    flags: Flags::NOSCRIPT,
    group: "generic",
    since: "3.0.0",
    summary: "Wait for the synchronous replication of all the write commands sent in the context of the current connection",
    complexity: "O(1)",
    categories: &["@connection"],
    tips: &["request_policy:all_shards", "response_policy:agg_min"],
    arguments: &[Argument::integer("numreplicas"), Argument::integer("timeout")],
    ..Command::ROW
};

const SHUTDOWN: Command = Command {
    name: "shutdown",
    arity: -1,
    flags: Flags::ADMIN
        .and(Flags::NOSCRIPT)
        .and(Flags::LOADING)
        .and(Flags::STALE)
        .and(Flags::NO_MULTI)
        .and(Flags::ALLOW_BUSY),
    group: "server",
    since: "1.0.0",
    summary: "Synchronously save the dataset to disk and then shut down the server",
    complexity: "O(N) when saving, where N is the total number of keys in all databases when saving data, otherwise O(1)",
    history: &[("7.0.0", "Added the `NOW`, `FORCE` and `ABORT` modifiers.")],
    arguments: &[
        Argument::one_of(
            "nosave_save",
            &[Argument::pure_token("nosave", "NOSAVE"), Argument::pure_token("save", "SAVE")],
        )
        .optional(),
        Argument::pure_token("now", "NOW").since("7.0.0").optional(),
        Argument::pure_token("force", "FORCE").since("7.0.0").optional(),
        Argument::pure_token("abort", "ABORT").since("7.0.0").optional(),
    ],
    ..Command::ROW
};

/// Of Redis 7.2.
const WAITAOF: Command = Command {
    name: "waitaof",
    arity: 4,
    flags: Flags::BLOCKING,
    group: "generic",
    since: "7.2.0",
    summary: "Blocks until all of the preceding write commands sent by the connection are written to the append-only file of the master and/or replicas.",
    complexity: "O(1)",
    categories: &["@connection"],
    tips: &["request_policy:all_shards", "response_policy:agg_min"],
    arguments: &[
        Argument::integer("numlocal"),
        Argument::integer("numreplicas"),
        Argument::integer("timeout"),
    ],
    ..Command::ROW
};

const SLOWLOG: Command = Command {
    name: "slowlog",
    arity: -2,
    group: "server",
    since: "2.2.12",
    summary: "A container for slow log commands",
    complexity: "Depends on subcommand.",
    subcommands: &[
        Command {
            name: "slowlog|len",
            arity: 2,
            flags: Flags::ADMIN.and(Flags::LOADING).and(Flags::STALE),
            group: "server",
            since: "2.2.12",
            summary: "Get the slow log's length",
            complexity: "O(1)",
            tips: &["request_policy:all_nodes", "response_policy:agg_sum", "nondeterministic_output"],
            ..Command::ROW
        },
        Command {
            name: "slowlog|get",
            arity: -2,
            flags: Flags::ADMIN.and(Flags::LOADING).and(Flags::STALE),
            group: "server",
            since: "2.2.12",
            summary: "Get the slow log's entries",
            complexity: "O(N) where N is the number of entries returned",
            tips: &["request_policy:all_nodes", "nondeterministic_output"],
            history: &[("4.0.0", "Added client IP address, port and name to the reply.")],
            arguments: &[Argument::integer("count").optional()],
            ..Command::ROW
        },
        Command {
            name: "slowlog|help",
            arity: 2,
            flags: Flags::LOADING.and(Flags::STALE),
            group: "server",
            since: "6.2.0",
            summary: "Show helpful text about the different subcommands",
            complexity: "O(1)",
            ..Command::ROW
        },
        Command {
            name: "slowlog|reset",
            arity: 2,
            flags: Flags::ADMIN.and(Flags::LOADING).and(Flags::STALE),
            group: "server",
            since: "2.2.12",
            summary: "Clear all entries from the slow log",
            complexity: "O(N) where N is the number of entries in the slowlog",
            tips: &["request_policy:all_nodes", "response_policy:all_succeeded"],
            ..Command::ROW
        },
    ],
    ..Command::ROW
};

const LATENCY: Command = Command {
    name: "latency",
    arity: -2,
    group: "server",
    since: "2.8.13",
    summary: "A container for latency diagnostics commands",
    complexity: "Depends on subcommand.",
    subcommands: &[
        Command {
            name: "latency|latest",
            arity: 2,
            flags: Flags::ADMIN.and(Flags::NOSCRIPT).and(Flags::LOADING).and(Flags::STALE),
            group: "server",
            since: "2.8.13",
            summary: "Return the latest latency samples for all events.",
            complexity: "O(1)",
            tips: &["nondeterministic_output", "request_policy:all_nodes", "response_policy:special"],
            ..Command::ROW
        },
        Command {
            name: "latency|doctor",
            arity: 2,
            flags: Flags::ADMIN.and(Flags::NOSCRIPT).and(Flags::LOADING).and(Flags::STALE),
            group: "server",
            since: "2.8.13",
            summary: "Return a human readable latency analysis report.",
            complexity: "O(1)",
            tips: &["nondeterministic_output", "request_policy:all_nodes", "response_policy:special"],
            ..Command::ROW
        },
        Command {
            name: "latency|help",
            arity: 2,
            flags: Flags::LOADING.and(Flags::STALE),
            group: "server",
            since: "2.8.13",
            summary: "Show helpful text about the different subcommands.",
            complexity: "O(1)",
            ..Command::ROW
        },
        Command {
            name: "latency|graph",
            arity: 3,
            flags: Flags::ADMIN.and(Flags::NOSCRIPT).and(Flags::LOADING).and(Flags::STALE),
            group: "server",
            since: "2.8.13",
            summary: "Return a latency graph for the event.",
            complexity: "O(1)",
            tips: &["nondeterministic_output", "request_policy:all_nodes", "response_policy:special"],
            arguments: &[Argument::string("event")],
            ..Command::ROW
        },
        Command {
            name: "latency|reset",
            arity: -2,
            flags: Flags::ADMIN.and(Flags::NOSCRIPT).and(Flags::LOADING).and(Flags::STALE),
            group: "server",
            since: "2.8.13",
            summary: "Reset latency data for one or more events.",
            complexity: "O(1)",
            tips: &["request_policy:all_nodes", "response_policy:all_succeeded"],
            arguments: &[Argument::string("event").optional().multiple()],
            ..Command::ROW
        },
        Command {
            name: "latency|history",
            arity: 3,
            flags: Flags::ADMIN.and(Flags::NOSCRIPT).and(Flags::LOADING).and(Flags::STALE),
            group: "server",
            since: "2.8.13",
            summary: "Return timestamp-latency samples for the event.",
            complexity: "O(1)",
            tips: &["nondeterministic_output", "request_policy:all_nodes", "response_policy:special"],
            arguments: &[Argument::string("event")],
            ..Command::ROW
        },
        Command {
            name: "latency|histogram",
            arity: -2,
            flags: Flags::ADMIN.and(Flags::NOSCRIPT).and(Flags::LOADING).and(Flags::STALE),
            group: "server",
            since: "7.0.0",
            summary: "Return the cumulative distribution of latencies of a subset of commands or all.",
            complexity: "O(N) where N is the number of commands with latency information being retrieved.",
            tips: &["nondeterministic_output", "request_policy:all_nodes", "response_policy:special"],
            arguments: &[Argument::string("command").optional().multiple()],
            ..Command::ROW
        },
    ],
    ..Command::ROW
};

const MODULE: Command = Command {
    name: "module",
    arity: -2,
    group: "server",
    since: "4.0.0",
    summary: "A container for module commands",
    complexity: "Depends on subcommand.",
    subcommands: &[
        Command {
            name: "module|loadex",
            arity: -3,
            flags: Flags::ADMIN.and(Flags::NOSCRIPT).and(Flags::NO_ASYNC_LOADING),
            group: "server",
            since: "7.0.0",
            summary: "Load a module with extended parameters",
            complexity: "O(1)",
            arguments: &[
                Argument::string("path"),
                Argument::block("configs", &[Argument::string("name"), Argument::string("value")])
                    .token("CONFIG")
                    .optional()
                    .multiple_token(),
                Argument::block("args", &[Argument::string("arg")]).token("ARGS").optional().multiple(),
            ],
            ..Command::ROW
        },
        Command {
            name: "module|help",
            arity: 2,
            flags: Flags::LOADING.and(Flags::STALE),
            group: "server",
            since: "5.0.0",
            summary: "Show helpful text about the different subcommands",
            complexity: "O(1)",
            ..Command::ROW
        },
        Command {
            name: "module|unload",
            arity: 3,
            flags: Flags::ADMIN.and(Flags::NOSCRIPT).and(Flags::NO_ASYNC_LOADING),
            group: "server",
            since: "4.0.0",
            summary: "Unload a module",
            complexity: "O(1)",
            arguments: &[Argument::string("name")],
            ..Command::ROW
        },
        Command {
            name: "module|list",
            arity: 2,
            flags: Flags::ADMIN.and(Flags::NOSCRIPT),
            group: "server",
            since: "4.0.0",
            summary: "List all modules loaded by the server",
            complexity: "O(N) where N is the number of loaded modules.",
            tips: &["nondeterministic_output_order"],
            ..Command::ROW
        },
        Command {
            name: "module|load",
            arity: -3,
            flags: Flags::ADMIN.and(Flags::NOSCRIPT).and(Flags::NO_ASYNC_LOADING),
            group: "server",
            since: "4.0.0",
            summary: "Load a module",
            complexity: "O(1)",
            arguments: &[Argument::string("path"), Argument::string("arg").optional().multiple()],
            ..Command::ROW
        },
    ],
    ..Command::ROW
};

const LASTSAVE: Command = Command {
    name: "lastsave",
    arity: 1,
    flags: Flags::LOADING.and(Flags::STALE).and(Flags::FAST),
    group: "server",
    since: "1.0.0",
    summary: "Get the UNIX time stamp of the last successful save to disk",
    complexity: "O(1)",
    categories: &["@admin", "@dangerous"],
    tips: &["nondeterministic_output"],
    ..Command::ROW
};

const SAVE: Command = Command {
    name: "save",
    arity: 1,
    flags: Flags::ADMIN.and(Flags::NOSCRIPT).and(Flags::NO_ASYNC_LOADING).and(Flags::NO_MULTI),
    group: "server",
    since: "1.0.0",
    summary: "Synchronously save the dataset to disk",
    complexity: "O(N) where N is the total number of keys in all databases",
    ..Command::ROW
};

const BGSAVE: Command = Command {
    name: "bgsave",
    arity: -1,
    flags: Flags::ADMIN.and(Flags::NOSCRIPT).and(Flags::NO_ASYNC_LOADING),
    group: "server",
    since: "1.0.0",
    summary: "Asynchronously save the dataset to disk",
    complexity: "O(1)",
    history: &[("3.2.2", "Added the `SCHEDULE` option.")],
    arguments: &[Argument::pure_token("schedule", "SCHEDULE").since("3.2.2").optional()],
    ..Command::ROW
};

const BGREWRITEAOF: Command = Command {
    name: "bgrewriteaof",
    arity: 1,
    flags: Flags::ADMIN.and(Flags::NOSCRIPT).and(Flags::NO_ASYNC_LOADING),
    group: "server",
    since: "1.0.0",
    summary: "Asynchronously rewrite the append-only file",
    complexity: "O(1)",
    ..Command::ROW
};

const LOLWUT: Command = Command {
    name: "lolwut",
    arity: -1,
    flags: Flags::READONLY.and(Flags::FAST),
    group: "server",
    since: "5.0.0",
    summary: "Display some computer art and the Redis version",
    arguments: &[Argument::integer("version").token("VERSION").optional()],
    ..Command::ROW
};

const FAILOVER: Command = Command {
    name: "failover",
    arity: -1,
    flags: Flags::ADMIN.and(Flags::NOSCRIPT).and(Flags::STALE),
    group: "server",
    since: "6.2.0",
    summary: "Start a coordinated failover between this server and one of its replicas.",
    complexity: "O(1)",
    arguments: &[
        Argument::block(
            "target",
            &[
                Argument::string("host"),
                Argument::integer("port"),
                Argument::pure_token("force", "FORCE").optional(),
            ],
        )
        .token("TO")
        .optional(),
        Argument::pure_token("abort", "ABORT").optional(),
        Argument::integer("milliseconds").token("TIMEOUT").optional(),
    ],
    ..Command::ROW
};

const REPLICAOF: Command = Command {
    name: "replicaof",
    arity: 3,
    flags: Flags::ADMIN.and(Flags::NOSCRIPT).and(Flags::STALE).and(Flags::NO_ASYNC_LOADING),
    group: "server",
    since: "5.0.0",
    summary: "Make the server a replica of another instance, or promote it as master.",
    complexity: "O(1)",
    arguments: &[Argument::one_of(
        "args",
        &[
            Argument::block("host-port", &[Argument::string("host"), Argument::integer("port")]),
            Argument::block(
                "no-one",
                &[Argument::pure_token("no", "NO"), Argument::pure_token("one", "ONE")],
            ),
        ],
    )],
    ..Command::ROW
};

const SLAVEOF: Command = Command {
    name: "slaveof",
    arity: 3,
    flags: Flags::ADMIN.and(Flags::NOSCRIPT).and(Flags::STALE).and(Flags::NO_ASYNC_LOADING),
    group: "server",
    since: "1.0.0",
    summary: "Make the server a replica of another instance, or promote it as master.",
    complexity: "O(1)",
    deprecated: Some(("5.0.0", "`REPLICAOF`")),
    arguments: &[Argument::one_of(
        "args",
        &[
            Argument::block("host-port", &[Argument::string("host"), Argument::integer("port")]),
            Argument::block(
                "no-one",
                &[Argument::pure_token("no", "NO"), Argument::pure_token("one", "ONE")],
            ),
        ],
    )],
    ..Command::ROW
};

const MONITOR: Command = Command {
    name: "monitor",
    arity: 1,
    flags: Flags::ADMIN.and(Flags::NOSCRIPT).and(Flags::LOADING).and(Flags::STALE),
    group: "server",
    since: "1.0.0",
    summary: "Listen for all requests received by the server in real time",
    ..Command::ROW
};
