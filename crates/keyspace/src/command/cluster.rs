//! Commands about the cluster. The server runs them; the rows are here.

use super::{Argument, Command, Flags};

pub(super) static COMMANDS: &[Command] = &[CLUSTER, ASKING, READONLY, READWRITE];

const CLUSTER: Command = Command {
    name: "cluster",
    arity: -2,
    group: "cluster",
    since: "3.0.0",
    summary: "A container for cluster commands",
    complexity: "Depends on subcommand.",
    subcommands: &[
        Command {
            name: "cluster|nodes",
            arity: 2,
            flags: Flags::STALE,
            group: "cluster",
            since: "3.0.0",
            summary: "Get Cluster config for the node",
            complexity: "O(N) where N is the total number of Cluster nodes",
            tips: &["nondeterministic_output"],
            ..Command::ROW
        },
        Command {
            name: "cluster|flushslots",
            arity: 2,
            flags: Flags::ADMIN.and(Flags::STALE).and(Flags::NO_ASYNC_LOADING),
            group: "cluster",
            since: "3.0.0",
            summary: "Delete a node's own slots information",
            complexity: "O(1)",
            ..Command::ROW
        },
        Command {
            name: "cluster|slaves",
            arity: 3,
            flags: Flags::ADMIN.and(Flags::STALE),
            group: "cluster",
            since: "3.0.0",
            summary: "List replica nodes of the specified master node",
            complexity: "O(1)",
            tips: &["nondeterministic_output"],
            deprecated: Some(("5.0.0", "`CLUSTER REPLICAS`")),
            arguments: &[Argument::string("node-id")],
            ..Command::ROW
        },
        Command {
            name: "cluster|reset",
            arity: -2,
            flags: Flags::ADMIN.and(Flags::NOSCRIPT).and(Flags::STALE),
            group: "cluster",
            since: "3.0.0",
            summary: "Reset a Redis Cluster node",
            complexity: "O(N) where N is the number of known nodes. The command may execute a FLUSHALL as a side effect.",
            arguments: &[Argument::one_of(
                "hard_soft",
                &[Argument::pure_token("hard", "HARD"), Argument::pure_token("soft", "SOFT")],
            )
            .optional()],
            ..Command::ROW
        },
        Command {
            name: "cluster|replicate",
            arity: 3,
            flags: Flags::ADMIN.and(Flags::STALE).and(Flags::NO_ASYNC_LOADING),
            group: "cluster",
            since: "3.0.0",
            summary: "Reconfigure a node as a replica of the specified master node",
            complexity: "O(1)",
            arguments: &[Argument::string("node-id")],
            ..Command::ROW
        },
        Command {
            name: "cluster|myid",
            arity: 2,
            flags: Flags::STALE,
            group: "cluster",
            since: "3.0.0",
            summary: "Return the node id",
            complexity: "O(1)",
            ..Command::ROW
        },
        Command {
            name: "cluster|delslotsrange",
            arity: -4,
            flags: Flags::ADMIN.and(Flags::STALE).and(Flags::NO_ASYNC_LOADING),
            group: "cluster",
            since: "7.0.0",
            summary: "Set hash slots as unbound in receiving node",
            complexity: "O(N) where N is the total number of the slots between the start slot and end slot arguments.",
            arguments: &[Argument::block(
                "start-slot_end-slot",
                &[Argument::integer("start-slot"), Argument::integer("end-slot")],
            )
            .multiple()],
            ..Command::ROW
        },
        Command {
            name: "cluster|addslots",
            arity: -3,
            flags: Flags::ADMIN.and(Flags::STALE).and(Flags::NO_ASYNC_LOADING),
            group: "cluster",
            since: "3.0.0",
            summary: "Assign new hash slots to receiving node",
            complexity: "O(N) where N is the total number of hash slot arguments",
            arguments: &[Argument::integer("slot").multiple()],
            ..Command::ROW
        },
        Command {
            name: "cluster|failover",
            arity: -2,
            flags: Flags::ADMIN.and(Flags::STALE).and(Flags::NO_ASYNC_LOADING),
            group: "cluster",
            since: "3.0.0",
            summary: "Forces a replica to perform a manual failover of its master.",
            complexity: "O(1)",
            arguments: &[Argument::one_of(
                "options",
                &[Argument::pure_token("force", "FORCE"), Argument::pure_token("takeover", "TAKEOVER")],
            )
            .optional()],
            ..Command::ROW
        },
        Command {
            name: "cluster|forget",
            arity: 3,
            flags: Flags::ADMIN.and(Flags::STALE).and(Flags::NO_ASYNC_LOADING),
            group: "cluster",
            since: "3.0.0",
            summary: "Remove a node from the nodes table",
            complexity: "O(1)",
            arguments: &[Argument::string("node-id")],
            ..Command::ROW
        },
        Command {
            name: "cluster|delslots",
            arity: -3,
            flags: Flags::ADMIN.and(Flags::STALE).and(Flags::NO_ASYNC_LOADING),
            group: "cluster",
            since: "3.0.0",
            summary: "Set hash slots as unbound in receiving node",
            complexity: "O(N) where N is the total number of hash slot arguments",
            arguments: &[Argument::integer("slot").multiple()],
            ..Command::ROW
        },
        Command {
            name: "cluster|help",
            arity: 2,
            flags: Flags::LOADING.and(Flags::STALE),
            group: "cluster",
            since: "5.0.0",
            summary: "Show helpful text about the different subcommands",
            complexity: "O(1)",
            ..Command::ROW
        },
        Command {
            name: "cluster|bumpepoch",
            arity: 2,
            flags: Flags::ADMIN.and(Flags::STALE).and(Flags::NO_ASYNC_LOADING),
            group: "cluster",
            since: "3.0.0",
            summary: "Advance the cluster config epoch",
            complexity: "O(1)",
            tips: &["nondeterministic_output"],
            ..Command::ROW
        },
        Command {
            name: "cluster|info",
            arity: 2,
            flags: Flags::STALE,
            group: "cluster",
            since: "3.0.0",
            summary: "Provides info about Redis Cluster node state",
            complexity: "O(1)",
            tips: &["nondeterministic_output"],
            ..Command::ROW
        },
        Command {
            name: "cluster|setslot",
            arity: -4,
            flags: Flags::ADMIN.and(Flags::STALE).and(Flags::NO_ASYNC_LOADING),
            group: "cluster",
            since: "3.0.0",
            summary: "Bind a hash slot to a specific node",
            complexity: "O(1)",
            arguments: &[
                Argument::integer("slot"),
                Argument::one_of(
                    "subcommand",
                    &[
                        Argument::string("node-id").token("IMPORTING"),
                        Argument::string("node-id").token("MIGRATING"),
                        Argument::string("node-id").token("NODE"),
                        Argument::pure_token("stable", "STABLE"),
                    ],
                ),
            ],
            ..Command::ROW
        },
        Command {
            name: "cluster|replicas",
            arity: 3,
            flags: Flags::ADMIN.and(Flags::STALE),
            group: "cluster",
            since: "5.0.0",
            summary: "List replica nodes of the specified master node",
            complexity: "O(1)",
            tips: &["nondeterministic_output"],
            arguments: &[Argument::string("node-id")],
            ..Command::ROW
        },
        Command {
            name: "cluster|slots",
            arity: 2,
            flags: Flags::STALE,
            group: "cluster",
            since: "3.0.0",
            summary: "Get array of Cluster slot to node mappings",
            complexity: "O(N) where N is the total number of Cluster nodes",
            tips: &["nondeterministic_output"],
            deprecated: Some(("7.0.0", "`CLUSTER SHARDS`")),
            history: &[
                ("4.0.0", "Added node IDs."),
                ("7.0.0", "Added additional networking metadata field."),
            ],
            ..Command::ROW
        },
        Command {
            name: "cluster|addslotsrange",
            arity: -4,
            flags: Flags::ADMIN.and(Flags::STALE).and(Flags::NO_ASYNC_LOADING),
            group: "cluster",
            since: "7.0.0",
            summary: "Assign new hash slots to receiving node",
            complexity: "O(N) where N is the total number of the slots between the start slot and end slot arguments.",
            arguments: &[Argument::block(
                "start-slot_end-slot",
                &[Argument::integer("start-slot"), Argument::integer("end-slot")],
            )
            .multiple()],
            ..Command::ROW
        },
        Command {
            name: "cluster|meet",
            arity: -4,
            flags: Flags::ADMIN.and(Flags::STALE).and(Flags::NO_ASYNC_LOADING),
            group: "cluster",
            since: "3.0.0",
            summary: "Force a node cluster to handshake with another node",
            complexity: "O(1)",
            history: &[("4.0.0", "Added the optional `cluster_bus_port` argument.")],
            arguments: &[
                Argument::string("ip"),
                Argument::integer("port"),
                Argument::integer("cluster_bus_port").since("4.0.0").optional(),
            ],
            ..Command::ROW
        },
        Command {
            name: "cluster|saveconfig",
            arity: 2,
            flags: Flags::ADMIN.and(Flags::STALE).and(Flags::NO_ASYNC_LOADING),
            group: "cluster",
            since: "3.0.0",
            summary: "Forces the node to save cluster state on disk",
            complexity: "O(1)",
            ..Command::ROW
        },
        Command {
            name: "cluster|shards",
            arity: 2,
            flags: Flags::STALE,
            group: "cluster",
            since: "7.0.0",
            summary: "Get array of cluster slots to node mappings",
            complexity: "O(N) where N is the total number of cluster nodes",
            tips: &["nondeterministic_output"],
            ..Command::ROW
        },
        Command {
            name: "cluster|keyslot",
            arity: 3,
            flags: Flags::STALE,
            group: "cluster",
            since: "3.0.0",
            summary: "Returns the hash slot of the specified key",
            complexity: "O(N) where N is the number of bytes in the key",
            arguments: &[Argument::string("key")],
            ..Command::ROW
        },
        Command {
            name: "cluster|getkeysinslot",
            arity: 4,
            flags: Flags::STALE,
            group: "cluster",
            since: "3.0.0",
            summary: "Return local key names in the specified hash slot",
            complexity: "O(log(N)) where N is the number of requested keys",
            tips: &["nondeterministic_output"],
            arguments: &[Argument::integer("slot"), Argument::integer("count")],
            ..Command::ROW
        },
        Command {
            name: "cluster|count-failure-reports",
            arity: 3,
            flags: Flags::ADMIN.and(Flags::STALE),
            group: "cluster",
            since: "3.0.0",
            summary: "Return the number of failure reports active for a given node",
            complexity: "O(N) where N is the number of failure reports",
            tips: &["nondeterministic_output"],
            arguments: &[Argument::string("node-id")],
            ..Command::ROW
        },
        Command {
            name: "cluster|countkeysinslot",
            arity: 3,
            flags: Flags::STALE,
            group: "cluster",
            since: "3.0.0",
            summary: "Return the number of local keys in the specified hash slot",
            complexity: "O(1)",
            arguments: &[Argument::integer("slot")],
            ..Command::ROW
        },
        Command {
            name: "cluster|links",
            arity: 2,
            flags: Flags::STALE,
            group: "cluster",
            since: "7.0.0",
            summary: "Returns a list of all TCP links to and from peer nodes in cluster",
            complexity: "O(N) where N is the total number of Cluster nodes",
            tips: &["nondeterministic_output"],
            ..Command::ROW
        },
        Command {
            name: "cluster|set-config-epoch",
            arity: 3,
            flags: Flags::ADMIN.and(Flags::STALE).and(Flags::NO_ASYNC_LOADING),
            group: "cluster",
            since: "3.0.0",
            summary: "Set the configuration epoch in a new node",
            complexity: "O(1)",
            arguments: &[Argument::integer("config-epoch")],
            ..Command::ROW
        },
    ],
    ..Command::ROW
};

const ASKING: Command = Command {
    name: "asking",
    arity: 1,
    flags: Flags::FAST,
    group: "cluster",
    since: "3.0.0",
    summary: "Sent by cluster clients after an -ASK redirect",
    complexity: "O(1)",
    categories: &["@connection"],
    ..Command::ROW
};

const READONLY: Command = Command {
    name: "readonly",
    arity: 1,
    flags: Flags::LOADING.and(Flags::STALE).and(Flags::FAST),
    group: "cluster",
    since: "3.0.0",
    summary: "Enables read queries for a connection to a cluster replica node",
    complexity: "O(1)",
    categories: &["@connection"],
    ..Command::ROW
};

const READWRITE: Command = Command {
    name: "readwrite",
    arity: 1,
    flags: Flags::LOADING.and(Flags::STALE).and(Flags::FAST),
    group: "cluster",
    since: "3.0.0",
    summary: "Disables read queries for a connection to a cluster replica node",
    complexity: "O(1)",
    categories: &["@connection"],
    ..Command::ROW
};
