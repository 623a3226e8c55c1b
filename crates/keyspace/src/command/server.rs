//! Commands about the server. The server runs them; the rows are here.

use super::{Argument, Command, Flags};

pub(super) static COMMANDS: &[Command] = &[INFO, CONFIG, TIME, COMMAND, ROLE, WAIT, SHUTDOWN];

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
