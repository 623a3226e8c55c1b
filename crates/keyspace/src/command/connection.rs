//! Commands about the connection. The server runs them; the rows are here.

use super::{Argument, Command, Flags};

pub(super) static COMMANDS: &[Command] = &[PING, ECHO, HELLO, AUTH, SELECT, QUIT, RESET, CLIENT];

const PING: Command = Command {
    name: "ping",
    arity: -1,
    flags: Flags::FAST,
    group: "connection",
    since: "1.0.0",
    summary: "Ping the server",
    complexity: "O(1)",
    categories: &["@connection"],
    tips: &["request_policy:all_shards", "response_policy:all_succeeded"],
    arguments: &[Argument::string("message").optional()],
    ..Command::ROW
};

const ECHO: Command = Command {
    name: "echo",
    arity: 2,
    flags: Flags::LOADING.and(Flags::STALE).and(Flags::FAST),
    group: "connection",
    since: "1.0.0",
    summary: "Echo the given string",
    complexity: "O(1)",
    categories: &["@connection"],
    arguments: &[Argument::string("message")],
    ..Command::ROW
};

const HELLO: Command = Command {
    name: "hello",
    arity: -1,
    flags: Flags::NOSCRIPT
        .and(Flags::LOADING)
        .and(Flags::STALE)
        .and(Flags::FAST)
        .and(Flags::NO_AUTH)
        .and(Flags::ALLOW_BUSY),
    group: "connection",
    since: "6.0.0",
    summary: "Handshake with Redis",
    complexity: "O(1)",
    categories: &["@connection"],
    history: &[(
        "6.2.0",
        "`protover` made optional; when called without arguments the command reports the current connection's context.",
    )],
    arguments: &[Argument::block(
        "arguments",
        &[
            Argument::integer("protover"),
            Argument::block(
                "username_password",
                &[Argument::string("username"), Argument::string("password")],
            )
            .token("AUTH")
            .optional(),
            Argument::string("clientname").token("SETNAME").optional(),
        ],
    )
    .optional()],
    ..Command::ROW
};

const AUTH: Command = Command {
    name: "auth",
    arity: -2,
    flags: Flags::NOSCRIPT
        .and(Flags::LOADING)
        .and(Flags::STALE)
        .and(Flags::FAST)
        .and(Flags::NO_AUTH)
        .and(Flags::ALLOW_BUSY),
    group: "connection",
    since: "1.0.0",
    summary: "Authenticate to the server",
    complexity: "O(N) where N is the number of passwords defined for the user",
    categories: &["@connection"],
    history: &[("6.0.0", "Added ACL style (username and password).")],
    arguments: &[Argument::string("username").since("6.0.0").optional(), Argument::string("password")],
    ..Command::ROW
};

const SELECT: Command = Command {
    name: "select",
    arity: 2,
    flags: Flags::LOADING.and(Flags::STALE).and(Flags::FAST),
    group: "connection",
    since: "1.0.0",
    summary: "Change the selected database for the current connection",
    complexity: "O(1)",
    categories: &["@connection"],
    arguments: &[Argument::integer("index")],
    ..Command::ROW
};

const QUIT: Command = Command {
    name: "quit",
    arity: -1,
    flags: Flags::NOSCRIPT
        .and(Flags::LOADING)
        .and(Flags::STALE)
        .and(Flags::FAST)
        .and(Flags::NO_AUTH)
        .and(Flags::ALLOW_BUSY),
    group: "connection",
    since: "1.0.0",
    summary: "Close the connection",
    complexity: "O(1)",
    categories: &["@connection"],
    ..Command::ROW
};

const RESET: Command = Command {
    name: "reset",
    arity: 1,
    flags: Flags::NOSCRIPT
        .and(Flags::LOADING)
        .and(Flags::STALE)
        .and(Flags::FAST)
        .and(Flags::NO_AUTH)
        .and(Flags::ALLOW_BUSY),
    group: "connection",
    since: "6.2.0",
    summary: "Reset the connection",
    complexity: "O(1)",
    categories: &["@connection"],
    ..Command::ROW
};

const CLIENT: Command = Command {
    name: "client",
    arity: -2,
    group: "connection",
    since: "2.4.0",
    summary: "A container for client connection commands",
    complexity: "Depends on subcommand.",
    subcommands: &[
        Command {
            name: "client|list",
            arity: -2,
            flags: Flags::ADMIN.and(Flags::NOSCRIPT).and(Flags::LOADING).and(Flags::STALE),
            group: "connection",
            since: "2.4.0",
            summary: "Get the list of client connections",
            complexity: "O(N) where N is the number of client connections",
            categories: &["@connection"],
            tips: &["nondeterministic_output"],
            history: &[
                ("2.8.12", "Added unique client `id` field."),
                ("5.0.0", "Added optional `TYPE` filter."),
                ("6.0.0", "Added `user` field."),
                (
                    "6.2.0",
                    "Added `argv-mem`, `tot-mem`, `laddr` and `redir` fields and the optional `ID` filter.",
                ),
                ("7.0.0", "Added `resp`, `multi-mem`, `rbs` and `rbp` fields."),
                ("7.0.3", "Added `ssub` field."),
            ],
            arguments: &[
                Argument::one_of(
                    "normal_master_replica_pubsub",
                    &[
                        Argument::pure_token("normal", "NORMAL"),
                        Argument::pure_token("master", "MASTER"),
                        Argument::pure_token("replica", "REPLICA"),
                        Argument::pure_token("pubsub", "PUBSUB"),
                    ],
                )
                .token("TYPE")
                .since("5.0.0")
                .optional(),
                Argument::block("id", &[Argument::integer("client-id").multiple()])
                    .token("ID")
                    .since("6.2.0")
                    .optional(),
            ],
            ..Command::ROW
        },
        Command {
            name: "client|getname",
            arity: 2,
            flags: Flags::NOSCRIPT.and(Flags::LOADING).and(Flags::STALE),
            group: "connection",
            since: "2.6.9",
            summary: "Get the current connection name",
            complexity: "O(1)",
            categories: &["@connection"],
            ..Command::ROW
        },
        Command {
            name: "client|id",
            arity: 2,
            flags: Flags::NOSCRIPT.and(Flags::LOADING).and(Flags::STALE),
            group: "connection",
            since: "5.0.0",
            summary: "Returns the client ID for the current connection",
            complexity: "O(1)",
            categories: &["@connection"],
            ..Command::ROW
        },
        Command {
            name: "client|help",
            arity: 2,
            flags: Flags::LOADING.and(Flags::STALE),
            group: "connection",
            since: "5.0.0",
            summary: "Show helpful text about the different subcommands",
            complexity: "O(1)",
            categories: &["@connection"],
            ..Command::ROW
        },
        Command {
            name: "client|unpause",
            arity: 2,
            flags: Flags::ADMIN.and(Flags::NOSCRIPT).and(Flags::LOADING).and(Flags::STALE),
            group: "connection",
            since: "6.2.0",
            summary: "Resume processing of clients that were paused",
            complexity: "O(N) Where N is the number of paused clients",
            categories: &["@connection"],
            ..Command::ROW
        },
        Command {
            name: "client|setname",
            arity: 3,
            flags: Flags::NOSCRIPT.and(Flags::LOADING).and(Flags::STALE),
            group: "connection",
            since: "2.6.9",
            summary: "Set the current connection name",
            complexity: "O(1)",
            categories: &["@connection"],
            arguments: &[Argument::string("connection-name")],
            ..Command::ROW
        },
        // Of Redis 7.2: redis-py, Lettuce and others send it on every connection.
        Command {
            name: "client|setinfo",
            arity: 4,
            flags: Flags::NOSCRIPT.and(Flags::LOADING).and(Flags::STALE),
            group: "connection",
            since: "7.2.0",
            summary: "Sets information specific to the client or connection.",
            complexity: "O(1)",
            categories: &["@connection"],
            tips: &["request_policy:all_nodes", "response_policy:all_succeeded"],
            arguments: &[Argument::one_of(
                "attr",
                &[Argument::string("libname").token("LIB-NAME"), Argument::string("libver").token("LIB-VER")],
            )],
            ..Command::ROW
        },
        // Of Redis 7.2.
        Command {
            name: "client|no-touch",
            arity: 3,
            flags: Flags::NOSCRIPT.and(Flags::LOADING).and(Flags::STALE),
            group: "connection",
            since: "7.2.0",
            summary: "Controls whether commands sent by the client affect the LRU/LFU of accessed keys.",
            complexity: "O(1)",
            categories: &["@connection"],
            arguments: &[Argument::one_of(
                "enabled",
                &[Argument::pure_token("on", "ON"), Argument::pure_token("off", "OFF")],
            )],
            ..Command::ROW
        },
        Command {
            name: "client|kill",
            arity: -3,
            flags: Flags::ADMIN.and(Flags::NOSCRIPT).and(Flags::LOADING).and(Flags::STALE),
            group: "connection",
            since: "2.4.0",
            summary: "Kill the connection of a client",
            complexity: "O(N) where N is the number of client connections",
            categories: &["@connection"],
            history: &[
                ("2.8.12", "Added new filter format."),
                ("2.8.12", "`ID` option."),
                ("3.2.0", "Added `master` type in for `TYPE` option."),
                (
                    "5.0.0",
                    "Replaced `slave` `TYPE` with `replica`. `slave` still supported for backward compatibility.",
                ),
                ("6.2.0", "`LADDR` option."),
            ],
            arguments: &[Argument::one_of(
                "filter",
                &[
                    Argument::string("ip:port").deprecated_since("2.8.12"),
                    Argument::one_of(
                        "new-format",
                        &[
                            Argument::integer("client-id").token("ID").since("2.8.12").optional(),
                            Argument::one_of(
                                "normal_master_slave_pubsub",
                                &[
                                    Argument::pure_token("normal", "NORMAL"),
                                    Argument::pure_token("master", "MASTER").since("3.2.0"),
                                    Argument::pure_token("slave", "SLAVE"),
                                    Argument::pure_token("replica", "REPLICA").since("5.0.0"),
                                    Argument::pure_token("pubsub", "PUBSUB"),
                                ],
                            )
                            .token("TYPE")
                            .since("2.8.12")
                            .optional(),
                            Argument::string("username").token("USER").optional(),
                            Argument::string("ip:port").token("ADDR").optional(),
                            Argument::string("ip:port").token("LADDR").since("6.2.0").optional(),
                            Argument::string("yes/no").token("SKIPME").optional(),
                        ],
                    )
                    .multiple(),
                ],
            )],
            ..Command::ROW
        },
        Command {
            name: "client|reply",
            arity: 3,
            flags: Flags::NOSCRIPT.and(Flags::LOADING).and(Flags::STALE),
            group: "connection",
            since: "3.2.0",
            summary: "Instruct the server whether to reply to commands",
            complexity: "O(1)",
            categories: &["@connection"],
            arguments: &[Argument::one_of(
                "on_off_skip",
                &[
                    Argument::pure_token("on", "ON"),
                    Argument::pure_token("off", "OFF"),
                    Argument::pure_token("skip", "SKIP"),
                ],
            )],
            ..Command::ROW
        },
        Command {
            name: "client|pause",
            arity: -3,
            flags: Flags::ADMIN.and(Flags::NOSCRIPT).and(Flags::LOADING).and(Flags::STALE),
            group: "connection",
            since: "2.9.50",
            summary: "Stop processing commands from clients for some time",
            complexity: "O(1)",
            categories: &["@connection"],
            history: &[("6.2.0", "`CLIENT PAUSE WRITE` mode added along with the `mode` option.")],
            arguments: &[
                Argument::integer("timeout"),
                Argument::one_of(
                    "mode",
                    &[Argument::pure_token("write", "WRITE"), Argument::pure_token("all", "ALL")],
                )
                .since("6.2.0")
                .optional(),
            ],
            ..Command::ROW
        },
        Command {
            name: "client|info",
            arity: 2,
            flags: Flags::NOSCRIPT.and(Flags::LOADING).and(Flags::STALE),
            group: "connection",
            since: "6.2.0",
            summary: "Returns information about the current client connection.",
            complexity: "O(1)",
            categories: &["@connection"],
            tips: &["nondeterministic_output"],
            ..Command::ROW
        },
        Command {
            name: "client|no-evict",
            arity: 3,
            flags: Flags::ADMIN.and(Flags::NOSCRIPT).and(Flags::LOADING).and(Flags::STALE),
            group: "connection",
            since: "7.0.0",
            summary: "Set client eviction mode for the current connection",
            complexity: "O(1)",
            categories: &["@connection"],
            arguments: &[Argument::one_of(
                "enabled",
                &[Argument::pure_token("on", "ON"), Argument::pure_token("off", "OFF")],
            )],
            ..Command::ROW
        },
        Command {
            name: "client|unblock",
            arity: -3,
            flags: Flags::ADMIN.and(Flags::NOSCRIPT).and(Flags::LOADING).and(Flags::STALE),
            group: "connection",
            since: "5.0.0",
            summary: "Unblock a client blocked in a blocking command from a different connection",
            complexity: "O(log N) where N is the number of client connections",
            categories: &["@connection"],
            arguments: &[
                Argument::integer("client-id"),
                Argument::one_of(
                    "timeout_error",
                    &[Argument::pure_token("timeout", "TIMEOUT"), Argument::pure_token("error", "ERROR")],
                )
                .optional(),
            ],
            ..Command::ROW
        },
        Command {
            name: "client|tracking",
            arity: -3,
            flags: Flags::NOSCRIPT.and(Flags::LOADING).and(Flags::STALE),
            group: "connection",
            since: "6.0.0",
            summary: "Enable or disable server assisted client side caching support",
            complexity: "O(1). Some options may introduce additional complexity.",
            categories: &["@connection"],
            arguments: &[
                Argument::one_of(
                    "status",
                    &[Argument::pure_token("on", "ON"), Argument::pure_token("off", "OFF")],
                ),
                Argument::integer("client-id").token("REDIRECT").optional(),
                Argument::string("prefix").token("PREFIX").optional().multiple_token(),
                Argument::pure_token("bcast", "BCAST").optional(),
                Argument::pure_token("optin", "OPTIN").optional(),
                Argument::pure_token("optout", "OPTOUT").optional(),
                Argument::pure_token("noloop", "NOLOOP").optional(),
            ],
            ..Command::ROW
        },
        Command {
            name: "client|trackinginfo",
            arity: 2,
            flags: Flags::NOSCRIPT.and(Flags::LOADING).and(Flags::STALE),
            group: "connection",
            since: "6.2.0",
            summary: "Return information about server assisted client side caching for the current connection",
            complexity: "O(1)",
            categories: &["@connection"],
            ..Command::ROW
        },
        Command {
            name: "client|caching",
            arity: 3,
            flags: Flags::NOSCRIPT.and(Flags::LOADING).and(Flags::STALE),
            group: "connection",
            since: "6.0.0",
            summary: "Instruct the server about tracking or not keys in the next request",
            complexity: "O(1)",
            categories: &["@connection"],
            arguments: &[Argument::one_of(
                "mode",
                &[Argument::pure_token("yes", "YES"), Argument::pure_token("no", "NO")],
            )],
            ..Command::ROW
        },
        Command {
            name: "client|getredir",
            arity: 2,
            flags: Flags::NOSCRIPT.and(Flags::LOADING).and(Flags::STALE),
            group: "connection",
            since: "6.0.0",
            summary: "Get tracking notifications redirection client ID if any",
            complexity: "O(1)",
            categories: &["@connection"],
            ..Command::ROW
        },
    ],
    ..Command::ROW
};
