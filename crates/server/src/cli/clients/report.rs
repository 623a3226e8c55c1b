//! What the lists of clients say: groups by library, name and address, and what looks wrong.
//!
//! Pure: lines of CLIENT LIST in, a report out.
//!
//! What counts as a likely leak: many connections of one group on one node that are *abandoned* (silent for at least half of
//! their lives, or never used but for the handshake), that are nearly all of the group, and that either keep coming (the
//! newest is much younger than the oldest) or are a large part of what the node can take. A pool that was filled once and
//! sleeps has connections of one age, and is none.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;

use super::super::cluster::columns;
use super::super::resp::Reply;

/// Fewer abandoned connections than this are nobody's leak.
const LEAST_LEAK: usize = 20;
/// Commands of a handshake.
const HANDSHAKE_COMMANDS: u64 = 8;
/// A client with more unread bytes than this is said not to read.
const UNREAD_BYTES: u64 = 1_000_000;

/// Limits of a node.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Limits {
    maxclients: Option<u64>,
    per_name: Option<u64>,
    per_address: Option<u64>,
}

impl Limits {
    /// From the answer to CONFIG GET.
    pub(super) fn from(pairs: &[Reply]) -> Limits {
        let find = |name: &str| {
            pairs.chunks(2).find_map(|pair| match pair {
                [Reply::Text(key), Reply::Text(value)] if key == name => Some(value.as_str()),
                _ => None,
            })
        };
        let maxclients = find("maxclients").and_then(|value| value.parse().ok());
        let quota = |name| {
            let text = find(name)?;
            match text.strip_suffix('%') {
                Some(percent) => Some(maxclients? * percent.parse::<u64>().ok()? / 100),
                None => text.parse().ok().filter(|count| *count > 0),
            }
        };
        Limits {
            maxclients,
            per_name: quota("maxclients-per-name"),
            per_address: quota("maxclients-per-address"),
        }
    }
}

/// The nodes that a line-by-line CLUSTER NODES names, as `host:port`; `host` is that of whoever answered.
pub(super) fn addresses(nodes: &str, host: &str) -> Vec<String> {
    let address = |line: &str| {
        let mut fields = line.split(' ');
        let (_, address, flags) = (fields.next()?, fields.next()?, fields.next()?);
        let gone = |flag: &str| flags.split(',').any(|other| other == flag);
        if gone("noaddr") || gone("handshake") {
            return None;
        }
        let (own, port) = address.split(['@', ',']).next()?.rsplit_once(':')?;
        Some(format!("{}:{port}", if own.is_empty() { host } else { own }))
    };
    nodes.lines().filter_map(address).collect()
}

/// One connection.
#[derive(Clone, PartialEq, Debug, Default)]
struct Connection {
    id: u64,
    library: String,
    name: String,
    address: String,
    age_s: u64,
    idle_s: u64,
    memory_bytes: u64,
    unread_bytes: u64,
    /// As far as the server counts them.
    commands: Option<u64>,
    /// In a second, while it was measured.
    rate: Option<f64>,
}

impl Connection {
    /// From a line of CLIENT LIST.
    fn parse(line: &str) -> Option<Connection> {
        let fields: BTreeMap<&str, &str> =
            line.split(' ').filter_map(|field| field.split_once('=')).collect();
        let text = |name: &str| fields.get(name).copied().unwrap_or_default();
        let number = |name: &str| text(name).parse::<u64>().ok();
        let library = match (text("lib-name"), text("lib-ver")) {
            ("", _) => String::new(),
            (name, "") => name.to_owned(),
            (name, version) => format!("{name} {version}"),
        };
        Some(Connection {
            id: number("id")?,
            library,
            name: text("name").to_owned(),
            // The port says nothing about who it is.
            address: text("addr").rsplit_once(':').map_or("", |(host, _)| host).to_owned(),
            age_s: number("age")?,
            idle_s: number("idle")?,
            memory_bytes: number("tot-mem").unwrap_or(0),
            unread_bytes: number("omem").unwrap_or(0) + number("obl").unwrap_or(0),
            commands: number("tot-cmds"),
            rate: None,
        })
    }

    /// Whether nobody seems to use it.
    fn is_abandoned(&self) -> bool {
        self.commands.is_some_and(|commands| commands <= HANDSHAKE_COMMANDS)
            || self.age_s > 0 && 2 * self.idle_s >= self.age_s
    }
}

/// What a node said.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Node {
    limits: Limits,
    connections: Vec<Connection>,
}

impl Node {
    /// From two lists, `elapsed` apart; the asking connection `me` is left out.
    pub(super) fn new(limits: Limits, before: &str, now: &str, elapsed: Duration, me: u64) -> Node {
        let before: BTreeMap<u64, u64> = before
            .lines()
            .filter_map(Connection::parse)
            .filter_map(|connection| Some((connection.id, connection.commands?)))
            .collect();
        let connections = now.lines().filter_map(Connection::parse).filter(|connection| connection.id != me);
        let connections = connections
            .map(|mut connection| {
                // Who came meanwhile had no commands before.
                let earlier = before.get(&connection.id).copied().unwrap_or(0);
                connection.rate = connection.commands.map(|commands| {
                    commands.saturating_sub(earlier) as f64 / elapsed.as_secs_f64().max(0.001)
                });
                connection
            })
            .collect();
        Node { limits, connections }
    }
}

/// What is said of all nodes. Field names are for scripts and stay.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub(super) struct Report {
    nodes: Vec<NodeRow>,
    groups: Vec<Group>,
    findings: Vec<Finding>,
}

#[derive(Clone, PartialEq, Debug, Serialize)]
struct NodeRow {
    address: String,
    connections: usize,
    maxclients: Option<u64>,
    /// Why it did not answer.
    error: Option<String>,
}

/// Connections with the same library, name and address, on all nodes.
#[derive(Clone, PartialEq, Debug, Serialize)]
struct Group {
    library: String,
    name: String,
    address: String,
    connections: usize,
    /// Of them, those that nobody seems to use.
    abandoned: usize,
    oldest_s: u64,
    newest_s: u64,
    /// The longest silence, and that of half of them.
    idle_most_s: u64,
    idle_median_s: u64,
    memory_bytes: u64,
    unread_bytes: u64,
    /// `None` when the nodes do not count commands.
    commands_per_second: Option<f64>,
}

/// Something that looks wrong.
#[derive(Clone, PartialEq, Debug, Serialize)]
struct Finding {
    /// `leak`, `near-limit` or `unread`.
    kind: &'static str,
    node: String,
    /// Who, as far as it is somebody's.
    name: Option<String>,
    address: Option<String>,
    /// For people.
    text: String,
}

type Key<'a> = (&'a str, &'a str, &'a str);

fn grouped(connections: &[Connection]) -> BTreeMap<Key<'_>, Vec<&Connection>> {
    let mut groups: BTreeMap<Key<'_>, Vec<&Connection>> = BTreeMap::new();
    for connection in connections {
        let key = (connection.library.as_str(), connection.name.as_str(), connection.address.as_str());
        groups.entry(key).or_default().push(connection);
    }
    groups
}

impl Group {
    fn new((library, name, address): Key<'_>, connections: &[&Connection]) -> Group {
        let mut idle: Vec<u64> = connections.iter().map(|connection| connection.idle_s).collect();
        idle.sort_unstable();
        let ages = || connections.iter().map(|connection| connection.age_s);
        Group {
            library: library.to_owned(),
            name: name.to_owned(),
            address: address.to_owned(),
            connections: connections.len(),
            abandoned: connections.iter().filter(|connection| connection.is_abandoned()).count(),
            oldest_s: ages().max().unwrap_or(0),
            newest_s: ages().min().unwrap_or(0),
            idle_most_s: idle.last().copied().unwrap_or(0),
            idle_median_s: idle.get(idle.len() / 2).copied().unwrap_or(0),
            memory_bytes: connections.iter().map(|connection| connection.memory_bytes).sum(),
            unread_bytes: connections.iter().map(|connection| connection.unread_bytes).sum(),
            commands_per_second: connections.iter().map(|connection| connection.rate).sum(),
        }
    }

    fn who(&self) -> String {
        who(&self.name, &self.address, &self.library)
    }

    /// Whether these connections of one node look like a leak.
    fn leaks(&self, maxclients: Option<u64>) -> bool {
        let many = self.abandoned >= LEAST_LEAK && self.abandoned * 10 >= self.connections * 8;
        let keep_coming = self.oldest_s >= 60 && self.newest_s * 4 <= self.oldest_s;
        let large = maxclients.is_some_and(|most| self.connections as u64 * 5 >= most);
        many && (keep_coming || large)
    }
}

fn who(name: &str, address: &str, library: &str) -> String {
    let named = if name.is_empty() { "a client without a name".to_owned() } else { format!("'{name}'") };
    let library = if library.is_empty() { String::new() } else { format!(" ({library})") };
    format!("{named} at {address}{library}")
}

impl Report {
    /// Of what each node answered, or why it did not.
    pub(super) fn new(answers: Vec<(String, Result<Node, String>)>) -> Report {
        let mut report = Report { nodes: Vec::new(), groups: Vec::new(), findings: Vec::new() };
        let mut all = Vec::new();
        for (address, answer) in answers {
            let (node, error) = match answer {
                Ok(node) => (node, None),
                Err(error) => (Node { limits: Limits::default(), connections: Vec::new() }, Some(error)),
            };
            report.findings.extend(findings(&address, &node));
            report.nodes.push(NodeRow {
                address,
                connections: node.connections.len(),
                maxclients: node.limits.maxclients,
                error,
            });
            all.extend(node.connections);
        }
        report.groups = grouped(&all).into_iter().map(|(key, group)| Group::new(key, &group)).collect();
        report.groups.sort_by_key(|group| std::cmp::Reverse(group.connections));
        report
    }

    /// Number of nodes.
    pub(super) fn nodes(&self) -> usize {
        self.nodes.len()
    }

    /// Number of nodes that did not answer.
    pub(super) fn silent(&self) -> usize {
        self.nodes.iter().filter(|node| node.error.is_some()).count()
    }

    /// For people.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        let rows = self.nodes.iter().map(|node| {
            vec![
                node.address.clone(),
                node.connections.to_string(),
                node.maxclients.map_or_else(|| "-".to_owned(), |most| most.to_string()),
                node.error.clone().unwrap_or_default(),
            ]
        });
        columns(&mut text, &["node", "connections", "of", ""], rows.collect());
        text.push('\n');
        let shown = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
        let rows = self.groups.iter().map(|group| {
            vec![
                group.connections.to_string(),
                group.abandoned.to_string(),
                format!("{}..{}", seconds(group.newest_s), seconds(group.oldest_s)),
                format!("{} ({})", seconds(group.idle_median_s), seconds(group.idle_most_s)),
                bytes(group.memory_bytes),
                group.commands_per_second.map_or_else(|| "-".to_owned(), |rate| format!("{rate:.1}")),
                shown(&group.library),
                shown(&group.name),
                shown(&group.address),
            ]
        });
        let headings = [
            "connections",
            "unused",
            "age",
            "idle, median (most)",
            "memory",
            "commands/s",
            "library",
            "name",
            "address",
        ];
        columns(&mut text, &headings, rows.collect());
        text.push('\n');
        if self.findings.is_empty() {
            text.push_str("Nothing looks wrong.\n");
        }
        for finding in &self.findings {
            let _ = writeln!(text, "{}: {}", finding.node, finding.text);
        }
        text
    }
}

/// What looks wrong on one node.
fn findings(address: &str, node: &Node) -> Vec<Finding> {
    let finding = |kind, name: Option<&str>, from: Option<&str>, text| Finding {
        kind,
        node: address.to_owned(),
        name: name.map(str::to_owned),
        address: from.map(str::to_owned),
        text,
    };
    let groups: Vec<Group> =
        grouped(&node.connections).into_iter().map(|(key, group)| Group::new(key, &group)).collect();
    let mut found = Vec::new();
    for group in groups.iter().filter(|group| group.leaks(node.limits.maxclients)) {
        let text = format!(
            "likely leak: {} has {} connections and does not use {} of them; the oldest is {} old, the newest {}",
            group.who(),
            group.connections,
            group.abandoned,
            seconds(group.oldest_s),
            seconds(group.newest_s),
        );
        found.push(finding("leak", Some(&group.name), Some(&group.address), text));
    }
    let near = |count: usize, most: Option<u64>| {
        most.filter(|most| count as u64 * 10 >= most * 8).map(|most| format!("{count} of {most} connections"))
    };
    if let Some(count) = near(node.connections.len(), node.limits.maxclients) {
        let largest = groups.iter().max_by_key(|group| group.connections);
        let largest =
            largest.map_or(String::new(), |group| format!(", {} of them {}", group.connections, group.who()));
        found.push(finding("near-limit", None, None, format!("near maxclients: {count}{largest}")));
    }
    type Part = fn(&Connection) -> &str;
    let quotas: [(&str, Option<u64>, Part); 2] = [
        ("maxclients-per-name", node.limits.per_name, |connection| &connection.name),
        ("maxclients-per-address", node.limits.per_address, |connection| &connection.address),
    ];
    for (setting, most, part) in quotas {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for connection in &node.connections {
            *counts.entry(part(connection)).or_default() += 1;
        }
        for (who, count) in counts.into_iter().filter(|(who, _)| !who.is_empty()) {
            if let Some(count) = near(count, most) {
                let (name, from) =
                    if setting.ends_with("name") { (Some(who), None) } else { (None, Some(who)) };
                found.push(finding("near-limit", name, from, format!("near {setting}: '{who}' has {count}")));
            }
        }
    }
    for group in groups.iter().filter(|group| group.unread_bytes > UNREAD_BYTES) {
        let text = format!("{} does not read its replies: {} wait", group.who(), bytes(group.unread_bytes));
        found.push(finding("unread", Some(&group.name), Some(&group.address), text));
    }
    found
}

fn seconds(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

fn bytes(bytes: u64) -> String {
    match bytes {
        0..10_000 => format!("{bytes} B"),
        10_000..10_000_000 => format!("{} kB", bytes / 1_000),
        _ => format!("{} MB", bytes / 1_000_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Recorded from a Redis 7.0.15.
    const REDIS: &str = "id=153 addr=127.0.0.1:47184 laddr=127.0.0.1:21601 fd=9 name= age=2 idle=1 flags=b db=0 sub=0 psub=0 ssub=0 multi=-1 qbuf=0 qbuf-free=20474 argv-mem=5 multi-mem=0 rbs=1024 rbp=11 obl=0 oll=0 omem=0 tot-mem=22301 events=r cmd=set user=default redir=-1 resp=2
id=155 addr=[::1]:47200 laddr=[::1]:21601 fd=12 name=web01(SE.Redis) age=1 idle=0 flags=N db=0 sub=0 psub=0 ssub=0 multi=-1 qbuf=13 qbuf-free=20461 argv-mem=10 multi-mem=0 rbs=1024 rbp=0 obl=0 oll=0 omem=0 tot-mem=22298 events=r cmd=client|list user=default redir=-1 resp=2
";

    /// A line as a Kvorum writes it.
    fn line(id: usize, name: &str, age: u64, idle: u64, commands: u64) -> String {
        format!(
            "id={id} addr=10.0.0.{}:40000 laddr=10.0.9.9:7100 fd=9 name={name} age={age} idle={idle} flags=N db=0 sub=0 psub=0 \
             ssub=0 multi=-1 qbuf=0 qbuf-free=0 argv-mem=0 multi-mem=0 rbs=0 rbp=0 obl=0 oll=0 omem=0 tot-mem=4096 events=r \
             cmd=ping user=default redir=-1 resp=2 lib-name=SE.Redis lib-ver=2.6.122 tot-net-in=1 tot-net-out=1 \
             tot-cmds={commands}\n",
            name.len()
        )
    }

    fn limits(maxclients: u64) -> Limits {
        Limits { maxclients: Some(maxclients), per_name: None, per_address: None }
    }

    fn report(limits: Limits, lines: &str) -> Report {
        let node = Node::new(limits, lines, lines, SECOND, 0);
        Report::new(vec![("db:7100".to_owned(), Ok(node))])
    }

    fn kinds(report: &Report) -> Vec<&'static str> {
        report.findings.iter().map(|finding| finding.kind).collect()
    }

    #[test]
    fn lists_of_a_redis_are_understood() {
        let node = Node::new(limits(10_000), REDIS, REDIS, SECOND, 999);
        assert_eq!(node.connections.len(), 2);
        let web = &node.connections[1];
        assert_eq!(
            (web.name.as_str(), web.address.as_str(), web.library.as_str()),
            ("web01(SE.Redis)", "[::1]", "")
        );
        assert_eq!((web.age_s, web.idle_s, web.memory_bytes, web.rate), (1, 0, 22_298, None));
        let without_me = Node::new(limits(10_000), REDIS, REDIS, SECOND, 155);
        assert_eq!(without_me.connections.len(), 1);
        let report = Report::new(vec![("db:7100".to_owned(), Ok(node))]);
        assert!(report.findings.is_empty());
        assert!(report.text().contains("Nothing looks wrong."), "{}", report.text());
        assert!(Node::new(limits(1), "", "nonsense\nid=x age=1\n", SECOND, 0).connections.is_empty());
    }

    #[test]
    fn connections_are_grouped_over_nodes_and_rates_are_measured() {
        let before =
            line(1, "web", 100, 0, 1_000) + &line(2, "web", 50, 10, 500) + &line(3, "batch", 7, 0, 90);
        let now = line(1, "web", 102, 0, 1_200) + &line(2, "web", 52, 12, 500) + &line(3, "batch", 9, 0, 92);
        let node = || Ok(Node::new(limits(10_000), &before, &now, 2 * SECOND, 0));
        let report = Report::new(vec![
            ("a:7100".to_owned(), node()),
            ("b:7100".to_owned(), node()),
            ("c:7100".to_owned(), Err("connection refused".to_owned())),
        ]);
        assert_eq!((report.nodes(), report.silent()), (3, 1));
        let web = &report.groups[0];
        assert_eq!(
            (web.library.as_str(), web.name.as_str(), web.connections),
            ("SE.Redis 2.6.122", "web", 4)
        );
        assert_eq!((web.oldest_s, web.newest_s, web.idle_most_s, web.idle_median_s), (102, 52, 12, 12));
        assert_eq!((web.memory_bytes, web.commands_per_second), (4 * 4_096, Some(200.0)));
        assert_eq!(report.groups[1].commands_per_second, Some(2.0));
        let text = report.text();
        assert!(text.contains("connection refused") && text.contains("SE.Redis 2.6.122  web"), "{text}");
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["groups"][0]["connections"], 4);
        assert_eq!(json["nodes"][2]["error"], "connection refused");
    }

    #[test]
    fn a_leak_is_named_and_a_pool_is_not() {
        // One connection more each minute, each used once.
        let leak: String = (0..60).map(|n| line(n + 1, "web", 60 * n as u64, 60 * n as u64, 12)).collect();
        let found = report(limits(10_000), &leak);
        assert_eq!(kinds(&found), ["leak"]);
        assert_eq!(
            found.findings[0].text,
            "likely leak: 'web' at 10.0.0.3 (SE.Redis 2.6.122) has 60 connections and does not use 59 of them; the oldest \
             is 59m old, the newest 0s"
        );
        // A pool that was filled at once and sleeps; one that works; and one that is small.
        let sleeping: String = (0..60).map(|n| line(n + 1, "web", 3_600 + n as u64, 3_000, 500)).collect();
        let working: String = (0..60).map(|n| line(n + 1, "web", 60 * n as u64, 1, 5_000)).collect();
        let small: String = (0..10).map(|n| line(n + 1, "web", 60 * n as u64, 60 * n as u64, 2)).collect();
        for lines in [sleeping, working, small] {
            assert!(report(limits(10_000), &lines).findings.is_empty(), "{lines}");
        }
    }

    #[test]
    fn a_leak_of_seconds_is_seen_by_its_size() {
        let leak: String = (0..900).map(|n| line(n + 1, "job", 3, 3, 2)).collect();
        let other: String = (900..905).map(|n| line(n + 1, "batch", 30, 0, 400)).collect();
        let limits = Limits { maxclients: Some(1_000), per_name: Some(900), per_address: Some(2_000) };
        let found = report(limits, &(leak + &other));
        assert_eq!(kinds(&found), ["leak", "near-limit", "near-limit"]);
        assert_eq!(found.findings[0].name.as_deref(), Some("job"));
        assert_eq!(
            found.findings[1].text,
            "near maxclients: 905 of 1000 connections, 900 of them 'job' at 10.0.0.3 (SE.Redis 2.6.122)"
        );
        assert_eq!(found.findings[2].text, "near maxclients-per-name: 'job' has 900 of 900 connections");
    }

    #[test]
    fn who_does_not_read_is_named() {
        let line = line(1, "slow", 10, 1, 100).replace(" omem=0 ", " omem=30000000 ");
        let found = report(limits(10_000), &line);
        assert_eq!(kinds(&found), ["unread"]);
        assert_eq!(
            found.findings[0].text,
            "'slow' at 10.0.0.4 (SE.Redis 2.6.122) does not read its replies: 30 MB wait"
        );
    }

    #[test]
    fn limits_and_addresses_are_read() {
        let text = |text: &str| Reply::Text(text.to_owned());
        let pairs =
            ["maxclients", "1000", "maxclients-per-name", "90%", "maxclients-per-address", "0"].map(text);
        let expected = Limits { maxclients: Some(1_000), per_name: Some(900), per_address: None };
        assert_eq!(Limits::from(&pairs), expected);
        assert_eq!(Limits::from(&["maxclients", "7"].map(text)), limits(7));
        let nodes = "a 10.0.0.1:7100@7198,host myself,master - 0 0 1 connected 0-1\n\
                     b :7101@7199 slave a 0 0 1 connected\nc :0@0 slave,noaddr a 0 0 1 disconnected\nx\n";
        assert_eq!(addresses(nodes, "db"), ["10.0.0.1:7100", "db:7101"]);
    }
}
