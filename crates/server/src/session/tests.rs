//! Conversations of real clients with a session, without sockets. What each client sends was read in its source;
//! the replies are those of a Redis 7.0.15, where it has the command.

use super::{Action, Asked, Next, Session};
use crate::port::{Place, Port, Replica};
use crate::resp::{Limits, RequestDecoder, RespSink};
use crate::testing::{Scripted, port};
use kvorum_cluster::{Mode, ServerId, ShardId};
use kvorum_keyspace::{Sink, lookup};
use kvorum_node::{Batch, HandoverError};
use std::sync::Arc;
use std::time::Duration;

struct Conversation {
    port: Port,
    replica: Option<Scripted>,
    session: Session,
}

impl Conversation {
    fn with(replica: Option<Scripted>) -> Conversation {
        let port = port();
        let client =
            port.clients.enter("127.0.0.1:50000".parse().unwrap(), "127.0.0.1:7000".parse().unwrap(), 8);
        Conversation { replica, session: Session::new(client, &port), port }
    }

    fn cluster() -> Conversation {
        Conversation::with(Some(Scripted::leading(Mode::Cluster)))
    }

    fn standalone() -> Conversation {
        Conversation::with(Some(Scripted::leading(Mode::Standalone)))
    }

    /// Sends inline commands, one a line, and returns the replies. Commands for the keyspace are shown as
    /// `<name>`, WAIT as `<wait replicas milliseconds>`, a closed connection as `<close>`.
    fn say(&mut self, requests: &str) -> String {
        let mut decoder = RequestDecoder::default();
        decoder.buffer(requests.len() + 1).extend_from_slice(requests.as_bytes());
        decoder.buffer(1).push(b'\n');
        let mut replies = String::new();
        let limits = Limits { bulk_bytes: 512 << 20, stranger: false };
        while let Some(args) = decoder.next(limits).unwrap() {
            let mut out = RespSink::new(self.session.protocol());
            let place = Place {
                port: &self.port,
                replica: self.replica.as_ref().map(|replica| replica as &dyn Replica),
            };
            self.session.begin();
            let next = match self.session.on_request(&args, &self.port) {
                Action::Run(command) => {
                    replies += &format!("<{}>\r\n", command.name);
                    Next::Continue
                }
                Action::Serve { command, .. } => self.session.serve(command, &args, place, &mut out),
                Action::Refuse { error, .. } => {
                    out.error(error.text());
                    Next::Continue
                }
                Action::Close => Next::Close,
            };
            if !self.session.is_muted() {
                replies += std::str::from_utf8(out.bytes()).unwrap();
            }
            match next {
                Next::Continue => {}
                Next::Close => replies += "<close>",
                Next::Handover { to: None, .. } => replies += "<hand over>\r\n",
                Next::Handover { to: Some(to), .. } => replies += &format!("<hand over to {to}>\r\n"),
                Next::Shutdown => replies += "<shutdown>\r\n",
                Next::Sleep { duration } => replies += &format!("<sleep {}>\r\n", duration.as_millis()),
                Next::Save { in_background } => {
                    replies += if in_background { "<save later>\r\n" } else { "<save>\r\n" };
                    self.port.saves.end(true, 0);
                }
                Next::Wait { replicas, patience, on_disk: Some(local) } => {
                    let patience = patience.map(|patience| patience.as_millis());
                    replies += &format!("<wait for disks {local} {replicas} {patience:?}>\r\n");
                }
                Next::Wait { replicas, patience, on_disk: None } => {
                    replies +=
                        &format!("<wait {replicas} {:?}>\r\n", patience.map(|patience| patience.as_millis()));
                }
            }
        }
        replies
    }

    fn expect(&mut self, requests: &str, replies: &str) {
        assert_eq!(self.say(requests), replies, "{requests}");
    }

    /// Checks the beginning of an error of each of these commands.
    fn expect_errors(&mut self, cases: &[(&str, &str)]) {
        for (request, error) in cases {
            assert_eq!(self.say(request), format!("-{error}\r\n"), "{request}");
        }
    }
}

#[test]
fn stack_exchange_redis() {
    let mut client = Conversation::cluster();
    client.expect(
        "CLIENT SETNAME web01(SE.Redis)\nCLIENT SETINFO lib-name SE.Redis\nCLIENT SETINFO lib-ver 2.6.122\nCLIENT ID",
        "+OK\r\n+OK\r\n+OK\r\n:1\r\n",
    );
    client.expect("CONFIG GET timeout", "*2\r\n$7\r\ntimeout\r\n$1\r\n0\r\n");
    client.expect("CONFIG GET slave-read-only", "*2\r\n$15\r\nslave-read-only\r\n$3\r\nyes\r\n");
    client.expect("CONFIG GET replica-read-only", "*2\r\n$17\r\nreplica-read-only\r\n$3\r\nyes\r\n");
    client.expect("CONFIG GET databases", "*2\r\n$9\r\ndatabases\r\n$1\r\n1\r\n");
    // Any other answer would make it take this port for a Sentinel.
    client.expect(
        "SENTINEL MASTERS",
        "-ERR unknown command 'SENTINEL', with args beginning with: 'MASTERS' \r\n",
    );
    let replication = client.say("INFO replication");
    assert!(
        replication.contains("\r\n# Replication\r\nrole:master\r\nconnected_slaves:2\r\n"),
        "{replication}"
    );
    let server = client.say("INFO server");
    for field in ["redis_version:7.0.15", "redis_mode:cluster", "tcp_port:7000", "run_id:"] {
        assert!(server.contains(&format!("\r\n{field}")), "{field} in {server}");
    }
    let nodes = client.say("CLUSTER NODES");
    let lines: Vec<Vec<&str>> =
        nodes.lines().skip(1).filter(|line| !line.is_empty()).map(|line| line.split(' ').collect()).collect();
    assert_eq!(lines.len(), 9);
    assert_eq!(lines.iter().filter(|line| line[2].contains("myself")).count(), 1);
    assert_eq!(lines.iter().filter(|line| line[2].contains("master")).count(), 3);
    assert!(lines.iter().all(|line| line[7] == "connected"));
    client.expect("GET __Booksleeve_TieBreak", "<get>\r\n");
    client.expect(r#"ECHO "\x00\x01\r\n*9\r\nabcdefgh""#, "$16\r\n\0\u{1}\r\n*9\r\nabcdefgh\r\n");
    // Without INFO it asks otherwise; with a newer protocol it says so first.
    client.expect("PING\nTIME nonsense", "+PONG\r\n-ERR wrong number of arguments for 'time' command\r\n");
    let hello = client.say("HELLO 3 SETNAME web02");
    assert!(hello.starts_with("%7\r\n$6\r\nserver\r\n$5\r\nredis\r\n"), "{hello}");
    client.expect("CLIENT GETNAME", "$5\r\nweb02\r\n");
}

#[test]
fn redis_py() {
    let mut client = Conversation::cluster();
    client.expect("CLIENT SETINFO LIB-NAME redis-py\nCLIENT SETINFO LIB-VER 5.0.1", "+OK\r\n+OK\r\n");
    client.expect(
        "HELLO 3 AUTH nobody secret",
        "-WRONGPASS invalid username-password pair or user is disabled.\r\n",
    );
    client.expect("AUTH default secret", "+OK\r\n");
    client.expect("READONLY\nREADWRITE", "+OK\r\n+OK\r\n");
    let slots = client.say("CLUSTER SLOTS");
    assert!(
        slots.starts_with("*3\r\n*5\r\n:0\r\n:5460\r\n*4\r\n$8\r\n10.0.0.1\r\n:7000\r\n$40\r\n"),
        "{slots}"
    );
    let command = client.say("COMMAND COUNT");
    assert!(command.starts_with(':') && command != ":0\r\n", "{command}");
    assert!(client.say("COMMAND").contains("\r\n$3\r\nget\r\n:2\r\n"));
    client.expect("INFO cluster", "$30\r\n# Cluster\r\ncluster_enabled:1\r\n\r\n");
    assert_eq!(client.session.db, 0);

    // One server: databases, and no trace of a cluster.
    let mut client = Conversation::standalone();
    client.expect(
        "CLIENT SETNAME worker\nSELECT 15\nSELECT 16",
        "+OK\r\n+OK\r\n-ERR DB index is out of range\r\n",
    );
    assert_eq!(client.session.db, 15);
    client.expect("CLUSTER SLOTS", "-ERR This instance has cluster support disabled\r\n");
    client.expect("READONLY", "-ERR This instance has cluster support disabled\r\n");
    assert!(client.say("INFO server").contains("\r\nredis_mode:standalone\r\n"));
    client.expect("RESET\nCLIENT GETNAME", "+RESET\r\n$-1\r\n");
    assert_eq!(client.session.db, 0);
}

#[test]
fn redis_rs() {
    let mut client = Conversation::cluster();
    let hello = client.say("HELLO 3");
    assert!(
        hello.contains("$5\r\nproto\r\n:3\r\n$2\r\nid\r\n:1\r\n$4\r\nmode\r\n$7\r\ncluster\r\n"),
        "{hello}"
    );
    assert!(hello.ends_with("$4\r\nrole\r\n$6\r\nmaster\r\n$7\r\nmodules\r\n*0\r\n"), "{hello}");
    client.expect("CLIENT SETINFO LIB-NAME redis-rs\nCLIENT SETINFO LIB-VER 0.25.0", "+OK\r\n+OK\r\n");
    client.expect("CLIENT GETNAME\nCONFIG GET maxmemory", "_\r\n%1\r\n$9\r\nmaxmemory\r\n$1\r\n0\r\n");
    assert!(client.say("CLUSTER SLOTS").starts_with("*3\r\n*5\r\n:0\r\n:5460\r\n"));
    client.expect("READONLY\nPING", "+OK\r\n+PONG\r\n");
    client.expect("INFO cluster", "=34\r\ntxt:# Cluster\r\ncluster_enabled:1\r\n\r\n");
    // A replica says what it is.
    client.replica.as_ref().unwrap().elect(0, 2, 3);
    assert!(client.say("HELLO").contains("$4\r\nrole\r\n$7\r\nreplica\r\n"));
}

#[test]
fn hiredis_and_the_tools_of_redis() {
    let mut client = Conversation::cluster();
    client.expect("PING\nPING hello\nECHO hi", "+PONG\r\n$5\r\nhello\r\n$2\r\nhi\r\n");
    assert!(client.say("COMMAND DOCS get").starts_with("*2\r\n$3\r\nget\r\n*"));
    client.expect(
        "CONFIG GET save\nCONFIG GET appendonly",
        "*2\r\n$4\r\nsave\r\n$0\r\n\r\n*2\r\n$10\r\nappendonly\r\n$3\r\nyes\r\n",
    );
    // redis-cli --cluster check.
    let info = client.say("INFO");
    for field in ["cluster_enabled:1", "redis_mode:cluster", "role:master", "maxmemory:0", "raft_role:leader"]
    {
        assert!(info.contains(&format!("\r\n{field}\r\n")), "{field} in {info}");
    }
    assert!(!info.contains("# Commandstats"));
    client.expect("DBSIZE\nCLUSTER KEYSLOT foo", "<dbsize>\r\n:12182\r\n");
    let id = client.say("CLUSTER MYID");
    let view = client.replica.as_ref().unwrap().view();
    let me = view.leader(view.topology.shard(ShardId(0)).unwrap()).unwrap();
    assert_eq!(id, format!("$40\r\n{}\r\n", me.node_id));
    assert!(client.say(&format!("CLUSTER REPLICAS {}", me.node_id)).starts_with("*2\r\n$"));
    client.expect("CLUSTER REPLICAS nosuch", "-ERR Unknown node nosuch\r\n");
    client.expect("QUIT", "+OK\r\n<close>");
}

const NO_AUTH: &str = "-NOAUTH Authentication required.\r\n";
const WRONG_PASSWORD: &str = "-WRONGPASS invalid username-password pair or user is disabled.\r\n";

/// Each reply is that of a Redis 7.0.15 with `requirepass secret`.
#[test]
fn a_client_without_the_password_gets_nowhere() {
    let mut client = Conversation::standalone();
    client.expect(
        "CONFIG SET requirepass secret\nPING\nAUTH wrong\nPING",
        &format!("+OK\r\n+PONG\r\n{WRONG_PASSWORD}+PONG\r\n"),
    );
    client.expect("CONFIG GET requirepass", "*2\r\n$11\r\nrequirepass\r\n$6\r\nsecret\r\n");
    client.expect("RESET", "+RESET\r\n");
    for request in
        ["PING", "GET a", "COMMAND", "INFO", "CLIENT SETNAME x", "CLIENT ID", "CONFIG SET requirepass ''"]
    {
        client.expect(request, NO_AUTH);
    }
    let hello = "-NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO AUTH <user> \
                 <pass> option can be used to authenticate the client and select the RESP protocol version at the same \
                 time\r\n";
    client.expect("HELLO\nHELLO 3\nHELLO 3 SETNAME x", &hello.repeat(3));
    client.expect_errors(&[
        ("HELLO 9", "NOPROTO unsupported protocol version"),
        ("HELLO 3 SETNAME 'a b'", "ERR Client names cannot contain spaces, newlines or special characters."),
        ("HELLO 3 AUTH default", "ERR Syntax error in HELLO option 'AUTH'"),
        ("NOPE", "ERR unknown command 'NOPE', with args beginning with: "),
        ("GET", "ERR wrong number of arguments for 'get' command"),
        ("AUTH a b c", "ERR syntax error"),
    ]);
    for login in ["AUTH x", "AUTH default x", "AUTH nobody secret", "HELLO 3 SETNAME me AUTH default x"] {
        client.expect(&format!("{login}\nPING"), &format!("{WRONG_PASSWORD}{NO_AUTH}"));
    }
    // As Redis: the name came before the wrong password, and took effect.
    client.expect(
        "AUTH secret\nCLIENT GETNAME\nRESET\nPING",
        &format!("+OK\r\n$2\r\nme\r\n+RESET\r\n{NO_AUTH}"),
    );
    client.expect("AUTH default secret\nPING\nRESET", "+OK\r\n+PONG\r\n+RESET\r\n");
    let greeting = client.say("HELLO 3 AUTH default secret SETNAME me\nCLIENT GETNAME");
    assert!(
        greeting.starts_with("%7\r\n$6\r\nserver\r\n") && greeting.ends_with("$2\r\nme\r\n"),
        "{greeting}"
    );
    client.expect("RESET\nQUIT", "+RESET\r\n+OK\r\n<close>");
}

#[test]
fn nobody_has_to_give_a_password_that_was_taken_away() {
    let mut client = Conversation::standalone();
    client.expect("CONFIG SET requirepass secret\nRESET\nPING", &format!("+OK\r\n+RESET\r\n{NO_AUTH}"));
    client.port.settings.requirepass.set(crate::Password::default());
    client.expect("PING", "+PONG\r\n");
    // As Redis: HELLO asks whether the client ever gave one.
    assert!(client.say("HELLO").starts_with("-NOAUTH HELLO must be called"));
    assert!(client.say("HELLO 2 AUTH default anything").starts_with("*14\r\n"));
}

#[test]
fn what_is_known_of_tracking_and_blocking_is_said() {
    let mut client = Conversation::standalone();
    client.expect("CLIENT GETREDIR\nCLIENT TRACKING OFF", ":-1\r\n+OK\r\n");
    client.expect(
        "CLIENT TRACKINGINFO",
        "*6\r\n$5\r\nflags\r\n*1\r\n$3\r\noff\r\n$8\r\nredirect\r\n:-1\r\n$8\r\nprefixes\r\n*0\r\n",
    );
    assert!(client.say("CLIENT TRACKING ON").starts_with("-ERR CLIENT TRACKING is not supported yet"));
    client
        .expect("CLIENT UNBLOCK 99\nCLIENT UNBLOCK 1 ERROR\nCLIENT UNBLOCK -1 TIMEOUT", ":0\r\n:0\r\n:0\r\n");
    client.say("HELLO 3");
    client.expect(
        "CLIENT TRACKINGINFO",
        "%3\r\n$5\r\nflags\r\n~1\r\n$3\r\noff\r\n$8\r\nredirect\r\n:-1\r\n$8\r\nprefixes\r\n*0\r\n",
    );
    assert!(client.say("CLIENT HELP").contains("+PAUSE <timeout> [WRITE|ALL]\r\n"));
}

#[test]
fn pauses_close_the_gate_of_the_port() {
    let mut client = Conversation::standalone();
    let set = kvorum_keyspace::lookup(b"set");
    let ping = kvorum_keyspace::lookup(b"ping");
    client.expect("CLIENT PAUSE 100000 WRITE", "+OK\r\n");
    assert!(client.port.gate.holds(set).is_some() && client.port.gate.holds(ping).is_none());
    client.expect("CLIENT UNPAUSE", "+OK\r\n");
    assert!(client.port.gate.holds(set).is_none());
    client.expect("CLIENT PAUSE 100000", "+OK\r\n");
    assert!(client.port.gate.holds(ping).is_some() && client.port.gate.holds(None).is_none());
    client.expect("CLIENT UNPAUSE", "+OK\r\n");
    // As Redis: what is later than there are milliseconds is no pause.
    client.expect("CLIENT PAUSE 9223372036854775807\nCLIENT PAUSE 0", "+OK\r\n+OK\r\n");
    assert!(client.port.gate.holds(set).is_none());
    client.expect(
        "DEBUG SLEEP 1.5\nDEBUG SLEEP -1\nDEBUG SLEEP x",
        "<sleep 1500>\r\n<sleep 0>\r\n<sleep 0>\r\n",
    );
    assert!(client.port.gate.holds(None).is_some());
}

#[test]
fn a_monitor_keeps_off_the_keyspace_until_it_resets() {
    let mut client = Conversation::standalone();
    client.expect("MONITOR\nMONITOR\nPING", "+OK\r\n+PONG\r\n");
    assert!(!client.port.monitors.is_empty());
    client.expect_errors(&[
        ("GET a", "ERR Replica can't interact with the keyspace"),
        ("SET a 1", "ERR Replica can't interact with the keyspace"),
    ]);
    assert!(client.say("CLIENT INFO").contains(" flags=O "));
    client.expect("RESET\nGET a", "+RESET\r\n<get>\r\n");
    assert!(client.port.monitors.is_empty());
    assert!(client.say("CLIENT INFO").contains(" flags=N "));
}

#[test]
fn what_a_browser_says_is_not_answered() {
    Conversation::standalone().expect("POST / HTTP/1.1", "<close>");
    Conversation::standalone().expect("host: example.org", "<close>");
}

#[test]
fn errors_are_those_of_redis() {
    let name = "Client names cannot contain spaces, newlines or special characters.";
    Conversation::standalone().expect_errors(&[
        ("foo bar", "ERR unknown command 'foo', with args beginning with: 'bar' "),
        ("GET", "ERR wrong number of arguments for 'get' command"),
        ("PING a b", "ERR wrong number of arguments for 'ping' command"),
        ("HELLO 4", "NOPROTO unsupported protocol version"),
        ("HELLO a", "ERR Protocol version is not an integer or out of range"),
        ("HELLO 2 x", "ERR Syntax error in HELLO option 'x'"),
        ("HELLO 2 AUTH x", "ERR Syntax error in HELLO option 'AUTH'"),
        ("HELLO 2 SETNAME 'a b'", &format!("ERR {name}")),
        ("AUTH", "ERR wrong number of arguments for 'auth' command"),
        (
            "AUTH x",
            "ERR AUTH <password> called without any password configured for the default user. \
             Are you sure your configuration is correct?",
        ),
        ("AUTH x y", "WRONGPASS invalid username-password pair or user is disabled."),
        ("AUTH a b c", "ERR syntax error"),
        ("SELECT a", "ERR value is not an integer or out of range"),
        ("SELECT -1", "ERR DB index is out of range"),
        ("SELECT 99999999999", "ERR value is out of range, value must between -2147483648 and 2147483647"),
        ("CLIENT", "ERR wrong number of arguments for 'client' command"),
        ("CLIENT FOO", "ERR unknown subcommand 'FOO'. Try CLIENT HELP."),
        ("CLIENT ID x", "ERR wrong number of arguments for 'client|id' command"),
        ("CLIENT SETNAME 'a b'", &format!("ERR {name}")),
        (
            "CLIENT SETINFO lib-name 'a b'",
            "ERR lib-name cannot contain spaces, newlines or special characters.",
        ),
        ("CLIENT SETINFO x y", "ERR Unrecognized option 'x'"),
        ("CLIENT NO-EVICT x", "ERR syntax error"),
        ("CLIENT REPLY x", "ERR syntax error"),
        ("CLIENT LIST FOO", "ERR syntax error"),
        ("CLIENT LIST TYPE", "ERR syntax error"),
        ("CLIENT LIST ID", "ERR syntax error"),
        ("CLIENT LIST ID x", "ERR Invalid client ID"),
        ("CLIENT KILL 1 2", "ERR syntax error"),
        ("CLIENT KILL ID", "ERR No such client"),
        ("CLIENT KILL ID 0", "ERR client-id should be greater than 0"),
        ("CLIENT KILL ID x", "ERR client-id should be greater than 0"),
        ("CLIENT KILL ID 999 SKIPME maybe", "ERR syntax error"),
        ("CLIENT KILL USER nobody", "ERR No such user 'nobody'"),
        ("CLIENT KILL TYPE foo", "ERR Unknown client type 'foo'"),
        ("CLIENT KILL MAXAGE 100", "ERR syntax error"),
        ("CLIENT PAUSE", "ERR wrong number of arguments for 'client|pause' command"),
        ("CLIENT PAUSE x", "ERR timeout is not an integer or out of range"),
        ("CLIENT PAUSE -1", "ERR timeout is negative"),
        ("CLIENT PAUSE 1 foo", "ERR CLIENT PAUSE mode must be WRITE or ALL"),
        (
            "CLIENT PAUSE 1 write all",
            "ERR unknown subcommand or wrong number of arguments for 'PAUSE'. Try CLIENT HELP.",
        ),
        ("CLIENT UNPAUSE x", "ERR wrong number of arguments for 'client|unpause' command"),
        ("CLIENT UNBLOCK", "ERR wrong number of arguments for 'client|unblock' command"),
        ("CLIENT UNBLOCK x", "ERR value is not an integer or out of range"),
        ("CLIENT UNBLOCK 99 foo", "ERR CLIENT UNBLOCK reason should be TIMEOUT or ERROR"),
        ("CLIENT TRACKING foo", "ERR syntax error"),
        (
            "CLIENT CACHING yes",
            "ERR CLIENT CACHING can be called only when the client is in tracking mode with OPTIN or OPTOUT mode enabled",
        ),
        ("MONITOR x", "ERR wrong number of arguments for 'monitor' command"),
        ("RESET x", "ERR wrong number of arguments for 'reset' command"),
        ("CLIENT LIST TYPE x", "ERR Unknown client type 'x'"),
        ("CLIENT LIST ID 1 x", "ERR Invalid client ID"),
        ("CLIENT KILL 1.2.3.4:5", "ERR No such client"),
        ("CONFIG FOO", "ERR unknown subcommand 'FOO'. Try CONFIG HELP."),
        ("CONFIG SET a", "ERR wrong number of arguments for 'config|set' command"),
        ("CONFIG SET nope 1", "ERR Unknown option or number of arguments for CONFIG SET - 'nope'"),
        (
            "CONFIG SET databases 1",
            "ERR CONFIG SET failed (possibly related to argument 'databases') - can't set immutable config",
        ),
        (
            "CONFIG SET timeout abc",
            "ERR CONFIG SET failed (possibly related to argument 'timeout') - \
             argument couldn't be parsed into an integer",
        ),
        (
            "CONFIG SET timeout -1",
            "ERR CONFIG SET failed (possibly related to argument 'timeout') - \
             argument must be between 0 and 2147483647 inclusive",
        ),
        (
            "CONFIG SET timeout 0 timeout 1",
            "ERR CONFIG SET failed (possibly related to argument 'timeout') - duplicate parameter",
        ),
        ("TIME x", "ERR wrong number of arguments for 'time' command"),
        ("WAIT a 0", "ERR value is not an integer or out of range"),
        ("WAIT 0 a", "ERR timeout is not an integer or out of range"),
        ("WAIT 0 -1", "ERR timeout is negative"),
        ("CLUSTER FOO", "ERR unknown subcommand 'FOO'. Try CLUSTER HELP."),
        ("CLUSTER", "ERR wrong number of arguments for 'cluster' command"),
        ("CLUSTER MYID x", "ERR wrong number of arguments for 'cluster|myid' command"),
        ("CLUSTER INFO", "ERR This instance has cluster support disabled"),
        ("ASKING", "ERR This instance has cluster support disabled"),
    ]);
    Conversation::cluster().expect_errors(&[
        ("SELECT 1", "ERR SELECT is not allowed in cluster mode"),
        ("CLUSTER KEYSLOT", "ERR wrong number of arguments for 'cluster|keyslot' command"),
        ("CLUSTER COUNTKEYSINSLOT a", "ERR value is not an integer or out of range"),
        ("CLUSTER COUNTKEYSINSLOT 16384", "ERR Invalid slot"),
        ("CLUSTER GETKEYSINSLOT 1 a", "ERR value is not an integer or out of range"),
        ("CLUSTER GETKEYSINSLOT 1 -1", "ERR Invalid slot or number of keys"),
        ("CLUSTER GETKEYSINSLOT 99999 1", "ERR Invalid slot or number of keys"),
    ]);
}

#[test]
fn what_changes_a_cluster_names_the_command_to_use_instead() {
    let mut client = Conversation::cluster();
    for subcommand in [
        "ADDSLOTS 1",
        "ADDSLOTSRANGE 1 2",
        "DELSLOTS 1",
        "DELSLOTSRANGE 1 2",
        "FLUSHSLOTS",
        "SETSLOT 1 STABLE",
        "MEET 127.0.0.1 7000",
        "FORGET x",
        "REPLICATE x",
        "RESET",
        "BUMPEPOCH",
        "SET-CONFIG-EPOCH 1",
        "COUNT-FAILURE-REPORTS x",
        "SAVECONFIG",
    ] {
        let reply = client.say(&format!("CLUSTER {subcommand}"));
        let name = subcommand.split(' ').next().unwrap();
        assert!(reply.starts_with(&format!("-ERR CLUSTER {name} is not supported: ")), "{reply}");
        assert!(reply.contains("'kvorum cluster "), "{reply}");
    }
    client.expect("CLUSTER LINKS", "*0\r\n");
}

#[test]
fn a_follower_says_where_its_master_is() {
    let mut client = Conversation::cluster();
    client.replica.as_ref().unwrap().elect(0, 2, 2);
    client.expect("ROLE", "*5\r\n$5\r\nslave\r\n$8\r\n10.0.0.2\r\n:7000\r\n$9\r\nconnected\r\n:10\r\n");
    let info = client.say("INFO replication");
    for field in ["role:slave", "master_host:10.0.0.2", "master_port:7000", "master_link_status:up"] {
        assert!(info.contains(&format!("\r\n{field}\r\n")), "{field} in {info}");
    }
    // The same master as CLUSTER NODES shows.
    let nodes = client.say("CLUSTER NODES");
    let mine = nodes.lines().find(|line| line.contains("myself")).unwrap();
    assert!(mine.contains(" myself,slave "), "{mine}");
}

#[test]
fn settings_are_found_by_pattern_and_changed_all_or_none() {
    let mut client = Conversation::cluster();
    client.expect("CONFIG GET nope", "*0\r\n");
    client.expect("CONFIG GET TIMEOU? timeout", "*2\r\n$7\r\ntimeout\r\n$1\r\n0\r\n");
    client.expect("CONFIG SET timeout 7 maxclients 50", "+OK\r\n");
    assert!(client.say("CONFIG SET timeout 8 maxclients 0").starts_with("-ERR CONFIG SET failed"));
    assert_eq!(client.port.settings.timeout(), Some(Duration::from_secs(7)));
    client.expect("CONFIG GET maxclients", "*2\r\n$10\r\nmaxclients\r\n$2\r\n50\r\n");
    // What is so already can be wished for: tools do.
    client.expect("CONFIG SET save '' appendonly yes", "+OK\r\n");
    client.expect("CONFIG GET appendfsync", "*2\r\n$11\r\nappendfsync\r\n$6\r\nalways\r\n");
    client.expect("CONFIG RESETSTAT", "+OK\r\n");
}

#[test]
fn a_server_without_a_cluster() {
    let mut client = Conversation::with(None);
    let id = "f".repeat(40);
    client.expect("CLUSTER MYID", &format!("$40\r\n{id}\r\n"));
    client.expect("CLUSTER NODES", &format!("$84\r\n{id} :7000@7098 myself,master - 0 0 0 connected\n\r\n"));
    let info = client.say("CLUSTER INFO");
    assert!(info.contains("cluster_state:fail\r\n") && info.contains("cluster_known_nodes:1\r\n"), "{info}");
    client
        .expect("CLUSTER SLOTS\nROLE\nWAIT 0 0", "*0\r\n*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n<wait 0 None>\r\n");
    let info = client.say("INFO");
    assert!(info.contains("cluster_enabled:1\r\n") && info.contains("redis_mode:cluster\r\n"), "{info}");
    client.expect("SELECT 0", "+OK\r\n");
}

#[test]
fn connections_see_each_other() {
    let mut client = Conversation::cluster();
    let other =
        client.port.clients.enter("127.0.0.1:50001".parse().unwrap(), "127.0.0.1:7000".parse().unwrap(), 8);
    client.say("CLIENT SETNAME me\nREADONLY\nCLIENT SETINFO lib-name x");
    let list = client.say("CLIENT LIST");
    let lines: Vec<&str> = list.lines().filter(|line| line.starts_with("id=")).collect();
    assert_eq!(lines.len(), 2);
    assert!(lines[0].starts_with(
        "id=1 addr=127.0.0.1:50000 laddr=127.0.0.1:7000 fd=8 name=me age=0 idle=0 flags=r db=0"
    ));
    assert!(lines[0].contains(" user=default ") && lines[0].contains(" lib-name=x "), "{}", lines[0]);
    assert!(client.say("CLIENT LIST ID 2 7").contains("id=2 "));
    client.expect("CLIENT LIST TYPE pubsub", "$0\r\n\r\n");
    client.expect("CLIENT KILL ADDR 127.0.0.1:50001", ":1\r\n");
    assert!(other.is_killed());
    client.expect("CLIENT KILL TYPE normal SKIPME no", ":2\r\n<close>");
    assert_eq!(Arc::strong_count(&other), 2);
}

#[test]
fn replies_are_turned_off_and_on() {
    let mut client = Conversation::cluster();
    client.expect("CLIENT REPLY OFF\nPING\nCLIENT REPLY SKIP\nPING\nCLIENT REPLY ON", "+OK\r\n");
    client.expect("CLIENT REPLY SKIP\nPING\nPING", "+PONG\r\n");
    client.expect("CLIENT REPLY OFF\nRESET\nPING", "+RESET\r\n+PONG\r\n");
}

#[test]
fn settings_are_shown_and_changed_as_in_redis() {
    let mut client = Conversation::cluster();
    client.expect("CONFIG GET TIMEOUT time", "*2\r\n$7\r\nTIMEOUT\r\n$1\r\n0\r\n");
    client.expect("CONFIG GET timeou[t] timeout TIMEOUT", "*2\r\n$7\r\ntimeout\r\n$1\r\n0\r\n");
    client.expect("CONFIG GET nothing", "*0\r\n");
    client.expect("CONFIG SET timeout 7 maxclients 8", "+OK\r\n");
    client.expect("CONFIG SET save '' appendonly YES maxmemory 0b hz 10", "+OK\r\n");
    let failed = |name: &str, why: &str| {
        format!("ERR CONFIG SET failed (possibly related to argument '{name}') - {why}")
    };
    let integer = "argument couldn't be parsed into an integer";
    client.expect_errors(&[
        ("CONFIG SET timeout 1 maxclients", "ERR syntax error"),
        ("CONFIG SET nosuch 1", "ERR Unknown option or number of arguments for CONFIG SET - 'nosuch'"),
        (
            "CONFIG SET timeout 1 Nosuch 1 timeout 2",
            "ERR Unknown option or number of arguments for CONFIG SET - 'Nosuch'",
        ),
        ("CONFIG SET timeout 1 TIMEOUT x", &failed("TIMEOUT", "duplicate parameter")),
        ("CONFIG SET timeout abc", &failed("timeout", integer)),
        ("CONFIG SET timeout 1.5", &failed("timeout", integer)),
        ("CONFIG SET timeout 01", &failed("timeout", integer)),
        ("CONFIG SET timeout -1", &failed("timeout", "argument must be between 0 and 2147483647 inclusive")),
        (
            "CONFIG SET maxclients 0",
            &failed("maxclients", "argument must be between 1 and 4294967295 inclusive"),
        ),
        ("CONFIG SET timeout abc databases 16", &failed("databases", "can't set immutable config")),
        ("CONFIG SET appendonly maybe", &failed("appendonly", "argument must be 'yes' or 'no'")),
        ("CONFIG SET appendonly no", &failed("appendonly", "can't set immutable config")),
        ("CONFIG SET maxmemory abc", &failed("maxmemory", "argument must be a memory value")),
        ("CONFIG SET maxmemory 1gb", &failed("maxmemory", "can't set immutable config")),
        (
            "CONFIG SET appendfsync foo",
            &failed("appendfsync", "argument(s) must be one of the following: everysec, always, no"),
        ),
        (
            "CONFIG SET slowlog-log-slower-than -2",
            &failed(
                "slowlog-log-slower-than",
                "argument must be between -1 and 9223372036854775807 inclusive",
            ),
        ),
        (
            "CONFIG SET latency-tracking-info-percentiles '50 a'",
            &failed(
                "latency-tracking-info-percentiles",
                "Invalid latency-tracking-info-percentiles parameters",
            ),
        ),
        (
            "CONFIG SET latency-tracking-info-percentiles '50 101'",
            &failed(
                "latency-tracking-info-percentiles",
                "latency-tracking-info-percentiles parameters should sit between [0.0,100.0]",
            ),
        ),
    ]);
    // None of them changed anything.
    client.expect("CONFIG GET timeout", "*2\r\n$7\r\ntimeout\r\n$1\r\n7\r\n");
    client.expect("CONFIG SET latency-tracking-info-percentiles '50 99.9'", "+OK\r\n");
    client.expect(
        "CONFIG GET latency-tracking-info*",
        "*2\r\n$33\r\nlatency-tracking-info-percentiles\r\n$7\r\n50 99.9\r\n",
    );
}

#[test]
fn slow_log_and_latency_monitor_without_anything_to_tell() {
    let mut client = Conversation::cluster();
    client.expect("SLOWLOG GET\nSLOWLOG GET -1\nSLOWLOG LEN\nSLOWLOG RESET", "*0\r\n*0\r\n:0\r\n+OK\r\n");
    let range = "ERR count should be greater than or equal to -1";
    client.expect_errors(&[
        ("SLOWLOG GET a", range),
        ("SLOWLOG GET -2", range),
        ("SLOWLOG", "ERR wrong number of arguments for 'slowlog' command"),
        ("SLOWLOG LEN x", "ERR wrong number of arguments for 'slowlog|len' command"),
        ("SLOWLOG foo", "ERR unknown subcommand 'foo'. Try SLOWLOG HELP."),
        ("LATENCY GRAPH foo", "ERR No samples available for event 'foo'"),
        ("LATENCY foo", "ERR unknown subcommand 'foo'. Try LATENCY HELP."),
    ]);
    client.expect("LATENCY LATEST\nLATENCY HISTORY command\nLATENCY RESET", "*0\r\n*0\r\n:0\r\n");
    client.expect("LATENCY HISTOGRAM\nLATENCY HISTOGRAM nosuch get", "*0\r\n*0\r\n");
    assert!(client.say("LATENCY DOCTOR").contains("I'm sorry, Dave, I can't do that."));
    client.expect("CONFIG SET latency-monitor-threshold 5", "+OK\r\n");
    assert!(client.say("LATENCY DOCTOR").contains("Dave, no latency spike was observed"));
    client.port.latency.observe("command", Duration::from_millis(7), Some(Duration::from_millis(5)));
    let latest = client.say("LATENCY LATEST");
    assert!(
        latest.starts_with("*1\r\n*4\r\n$7\r\ncommand\r\n:") && latest.ends_with(":7\r\n:7\r\n"),
        "{latest}"
    );
    assert!(
        client.say("LATENCY GRAPH command").contains("command - high 7 ms, low 7 ms (all time high 7 ms)")
    );
    let doctor = client.say("LATENCY DOCTOR");
    assert!(
        doctor.contains("1. command: 1 latency spikes (average 7ms, mean deviation 0ms, period 1.00 sec)"),
        "{doctor}"
    );
    assert!(doctor.contains("'CONFIG SET slowlog-log-slower-than 5000'"), "{doctor}");
    client.expect("LATENCY RESET foo COMMAND\nLATENCY LATEST", ":1\r\n*0\r\n");
}

#[test]
fn saves_are_snapshots_one_at_a_time() {
    let mut client = Conversation::cluster();
    client.expect("SAVE\nBGSAVE\nBGREWRITEAOF", "<save>\r\n+Background saving started\r\n<save later>\r\n+Background append only file rewriting started\r\n<save later>\r\n");
    assert!(client.port.saves.begin());
    let running = "ERR Background save already in progress";
    client.expect_errors(&[
        ("SAVE", running),
        ("BGSAVE", running),
        ("BGREWRITEAOF", "ERR Background append only file rewriting already in progress"),
        ("BGSAVE now", "ERR syntax error"),
        ("BGSAVE SCHEDULE x", "ERR syntax error"),
    ]);
    client.expect("BGSAVE SCHEDULE", "+Background saving scheduled\r\n");
    assert!(client.say("INFO persistence").contains("\r\nrdb_bgsave_in_progress:1\r\n"));
    client.port.saves.end(false, 0);
    let info = client.say("INFO persistence");
    assert!(
        info.contains("\r\nrdb_bgsave_in_progress:0\r\n")
            && info.contains("\r\nrdb_last_bgsave_status:err\r\n"),
        "{info}"
    );
    let before = crate::port::wall_time().as_secs() - 60;
    let last: u64 = client.say("LASTSAVE").trim_matches(|c| ":\r\n".contains(c)).parse().unwrap();
    assert!(last > before);
}

#[test]
fn a_client_asks_for_the_shutdown_and_thinks_better_of_it() {
    let mut client = Conversation::cluster();
    client.expect_errors(&[
        ("SHUTDOWN SAVE NOSAVE", "ERR syntax error"),
        ("SHUTDOWN foo", "ERR syntax error"),
        ("SHUTDOWN ABORT NOW", "ERR syntax error"),
        ("SHUTDOWN ABORT", "ERR No shutdown in progress."),
    ]);
    assert!(!client.port.control.is_asked());
    client.expect("SHUTDOWN NOSAVE NOW FORCE", "<shutdown>\r\n");
    assert!(client.port.control.is_asked());
    client.expect("SHUTDOWN ABORT", "+OK\r\n");
    assert!(!client.port.control.is_asked());
    client.expect("SHUTDOWN", "<shutdown>\r\n");
    client.port.control.commit();
    client.expect_errors(&[("SHUTDOWN ABORT", "ERR No shutdown in progress.")]);
}

#[test]
fn waiting_for_replicas_and_for_disks() {
    let mut client = Conversation::cluster();
    client.expect("WAIT 1 500\nWAIT -1 0", "<wait 1 Some(500)>\r\n<wait 0 None>\r\n");
    client.expect(
        "WAITAOF 1 2 500\nWAITAOF 0 0 0",
        "<wait for disks true 2 Some(500)>\r\n<wait for disks false 0 None>\r\n",
    );
    client.expect_errors(&[
        ("WAIT a 0", "ERR value is not an integer or out of range"),
        ("WAIT 0 a", "ERR timeout is not an integer or out of range"),
        ("WAIT 0 -1", "ERR timeout is negative"),
        ("WAITAOF a 0 0", "ERR value is not an integer or out of range"),
        ("WAITAOF 2 0 0", "ERR value is out of range, value must between 0 and 1"),
        ("WAITAOF 0 -1 0", "ERR value is out of range, must be positive"),
        ("WAITAOF 0 0 -1", "ERR timeout is negative"),
    ]);
    client.replica.as_ref().unwrap().elect(0, 2, 3);
    assert!(client.say("WAIT 0 0").starts_with("-ERR WAIT cannot be used with replica instances."));
    assert!(client.say("WAITAOF 0 0 0").starts_with("-ERR WAITAOF cannot be used with replica instances."));
}

#[test]
fn replication_is_not_for_clients_to_decide() {
    let cluster = "ERR FAILOVER not allowed in cluster mode. Use CLUSTER FAILOVER command instead.";
    Conversation::cluster().expect_errors(&[
        ("REPLICAOF a b", "ERR REPLICAOF not allowed in cluster mode."),
        ("SLAVEOF NO ONE", "ERR REPLICAOF not allowed in cluster mode."),
        ("FAILOVER foo", cluster),
    ]);
    let mut client = Conversation::standalone();
    client.expect("REPLICAOF no ONE", "+OK\r\n");
    client.expect_errors(&[
        ("REPLICAOF a b", "ERR Invalid master port"),
        ("FAILOVER foo", "ERR syntax error"),
        ("FAILOVER TO", "ERR syntax error"),
        ("FAILOVER TIMEOUT -1", "ERR FAILOVER timeout must be greater than 0"),
        ("FAILOVER TIMEOUT a", "ERR value is not an integer or out of range"),
        ("FAILOVER TO a b", "ERR value is not an integer or out of range"),
        ("FAILOVER ABORT TO a 1", "ERR syntax error"),
        ("FAILOVER ABORT", "ERR No failover in progress."),
        ("FAILOVER TO 127.0.0.1 1", "ERR FAILOVER target HOST and PORT is not a replica."),
        (
            "FAILOVER TO 10.0.0.2 7000 FORCE",
            "ERR FAILOVER with force option requires both a timeout and target HOST and IP.",
        ),
    ]);
    let heir = client.replica.as_ref().unwrap().view().topology.shards[0].replica_on(ServerId(2)).unwrap().id;
    let topology = Arc::clone(&client.replica.as_ref().unwrap().view().topology);
    let (host, port) = topology.address(heir).unwrap();
    client.expect("FAILOVER\nFAILOVER TIMEOUT 100", "<hand over>\r\n<hand over>\r\n");
    client.expect(
        &format!("FAILOVER TO {host} {port} FORCE TIMEOUT 100"),
        &format!("<hand over to {heir}>\r\n"),
    );
    client.replica.as_ref().unwrap().elect(0, 2, 3);
    client.expect_errors(&[("FAILOVER", "ERR FAILOVER is not valid when server is a replica.")]);
}

#[test]
fn a_follower_takes_the_lead_when_a_client_wants_it_to() {
    let mut client = Conversation::cluster();
    let refused = "ERR You should send CLUSTER FAILOVER to a replica";
    client.expect_errors(&[("CLUSTER FAILOVER", refused), ("CLUSTER FAILOVER force", refused)]);
    client.replica.as_ref().unwrap().elect(0, 2, 3);
    let me = client.replica.as_ref().unwrap().id();
    let reply = format!("<hand over to {me}>\r\n");
    client.expect("CLUSTER FAILOVER\nCLUSTER FAILOVER FORCE\nCLUSTER FAILOVER takeover", &reply.repeat(3));
    client.expect_errors(&[("CLUSTER FAILOVER foo", "ERR syntax error")]);
    Conversation::standalone()
        .expect_errors(&[("CLUSTER FAILOVER", "ERR This instance has cluster support disabled")]);
}

#[test]
fn why_a_handover_failed_is_said_in_the_words_of_the_command() {
    let said = |asked: Asked, why: HandoverError| asked.refusal(&why);
    let named = Asked::ByFailover { named: true };
    assert_eq!(said(named, HandoverError::NotReady), "ERR FAILOVER target replica is not online.");
    assert_eq!(said(named, HandoverError::InProgress), "ERR FAILOVER already in progress.");
    let any = Asked::ByFailover { named: false };
    assert_eq!(said(any, HandoverError::NoHeir), "ERR FAILOVER requires connected replicas.");
    assert!(
        said(Asked::ByClusterFailover, HandoverError::NoLeader).starts_with("ERR Master is down or failed")
    );
    let lags = "ERR the lead was not handed over: that replica cannot take over now";
    assert_eq!(said(Asked::ByClusterFailover, HandoverError::NotReady), lags);
}

#[test]
fn debug_is_for_clients_of_this_machine() {
    let mut client = Conversation::standalone();
    client
        .expect("DEBUG SLEEP 0.25\nDEBUG LOG hi\nDEBUG SET-ACTIVE-EXPIRE 0", "<sleep 250>\r\n+OK\r\n+OK\r\n");
    client.expect(
        "DEBUG PROTOCOL map\nDEBUG PROTOCOL true",
        "*6\r\n:0\r\n:0\r\n:1\r\n:1\r\n:2\r\n:0\r\n:1\r\n",
    );
    client.expect_errors(&[
        ("DEBUG ERROR 'MYERR a b'", "MYERR a b"),
        ("DEBUG PROTOCOL push", "ERR RESP2 is not supported by this command"),
        ("DEBUG nosuch", "ERR unknown subcommand or wrong number of arguments for 'nosuch'. Try DEBUG HELP."),
    ]);
    let away =
        client.port.clients.enter("192.0.2.1:50000".parse().unwrap(), "127.0.0.1:7000".parse().unwrap(), -1);
    client.session = Session::new(away, &client.port);
    assert!(client.say("DEBUG SLEEP 0").starts_with("-ERR DEBUG command not allowed."));
    client.expect("CONFIG GET enable-debug-command", "*2\r\n$20\r\nenable-debug-command\r\n$5\r\nlocal\r\n");
}

#[test]
fn a_reload_takes_nothing_back() {
    let mut client = Conversation::standalone();
    let replica = client.replica.clone().unwrap();
    let mut batch = Batch::default();
    batch.push(lookup(b"SET").unwrap(), 0, [&b"SET"[..], b"k", b"v"].into_iter());
    replica.run(&batch, &mut RespSink::default());
    client.expect(
        "DEBUG RELOAD\nDEBUG RELOAD MERGE NOFLUSH\nDEBUG LOADAOF x\nDEBUG RELOAD NOSAVE",
        "<save>\r\n<save>\r\n<save>\r\n-ERR DEBUG RELOAD NOSAVE is not supported after changes: what was acknowledged is not \
         taken back\r\n",
    );
    assert!(client.port.saves.begin());
    client.expect_errors(&[("DEBUG RELOAD", "ERR Background save already in progress")]);
    client.port.saves.end(true, replica.keyspace().sequence);
    client.expect("DEBUG RELOAD NOSAVE", "+OK\r\n");
    client.expect_errors(&[
        ("DEBUG RELOAD NOSAVE foo", "ERR DEBUG RELOAD only supports the MERGE, NOFLUSH and NOSAVE options."),
        ("DEBUG CONFIG-REWRITE-FORCE-ALL", "ERR The server is running without a config file"),
    ]);
}

#[test]
fn memory_modules_and_other_small_things() {
    let mut client = Conversation::cluster();
    client.expect("MODULE LIST\nMEMORY PURGE", "*0\r\n+OK\r\n");
    client.expect("LOLWUT VERSION 7", "$18\r\nRedis ver. 7.0.15\n\r\n");
    assert!(client.say("MEMORY DOCTOR").contains("Hi Sam, this instance is empty"));
    assert!(client.say("MODULE LOAD x").starts_with("-ERR MODULE command not allowed."));
    let stats = client.say("HELLO 3\nMEMORY STATS");
    for field in ["peak.allocated", "keys.count", "dataset.bytes", "fragmentation"] {
        assert!(stats.contains(&format!("\r\n{field}\r\n")), "{field} in {stats}");
    }
    client.expect_errors(&[("CONFIG REWRITE", "ERR The server is running without a config file")]);
}

/// Fields of a real Redis 7.0's INFO that are not here, each for a reason.
const NOT_HERE: &[(&str, &[&str])] = &[
    (
        "there is no fork and no child",
        &[
            "current_cow_peak",
            "current_cow_size",
            "current_cow_size_age",
            "current_fork_perc",
            "current_save_keys_processed",
            "current_save_keys_total",
            "rdb_last_cow_size",
            "aof_last_cow_size",
            "latest_fork_usec",
            "total_forks",
            "module_fork_in_progress",
            "module_fork_last_cow_size",
        ],
    ),
    (
        "snapshots are loaded before the port opens",
        &["rdb_last_load_keys_expired", "rdb_last_load_keys_loaded"],
    ),
    ("it is not written in C", &["atomicvar_api", "gcc_version"]),
    (
        "the allocator does not say",
        &[
            "allocator_allocated",
            "allocator_active",
            "allocator_resident",
            "allocator_frag_ratio",
            "allocator_frag_bytes",
            "allocator_rss_ratio",
            "allocator_rss_bytes",
            "rss_overhead_ratio",
            "rss_overhead_bytes",
        ],
    ),
    (
        "nothing is moved in memory",
        &[
            "active_defrag_hits",
            "active_defrag_misses",
            "active_defrag_key_hits",
            "active_defrag_key_misses",
            "total_active_defrag_time",
            "current_active_defrag_time",
        ],
    ),
    (
        "expiry is a tick of the log",
        &["expired_stale_perc", "expired_time_cap_reached_count", "expire_cycle_cpu_milliseconds"],
    ),
    (
        "replication is Raft's",
        &[
            "total_net_repl_input_bytes",
            "total_net_repl_output_bytes",
            "instantaneous_input_repl_kbps",
            "instantaneous_output_repl_kbps",
            "sync_full",
            "sync_partial_ok",
            "sync_partial_err",
            "slave_expires_tracked_keys",
            "aof_rewrites_consecutive_failures",
        ],
    ),
    (
        "client buffers are not Redis's",
        &[
            "reply_buffer_shrinks",
            "reply_buffer_expands",
            "io_threaded_reads_processed",
            "io_threaded_writes_processed",
            "dump_payload_sanitizations",
            "unexpected_error_replies",
            "migrate_cached_sockets",
        ],
    ),
];

/// The fields of INFO everything of a Redis 7.0.15 master, by section.
const REDIS_INFO: &str = include_str!("info_fields.txt");

#[test]
fn info_has_the_fields_of_redis() {
    let mut client = Conversation::standalone();
    let info = client.say("INFO everything");
    let mut missing = Vec::new();
    for line in REDIS_INFO.lines().filter(|line| !line.is_empty()) {
        let (section, fields) = line.split_once(':').unwrap();
        let text =
            info.split(&format!("# {section}\r\n")).nth(1).unwrap_or_else(|| panic!("section {section}"));
        let text = text.split("\r\n\r\n").next().unwrap();
        for field in fields.split_whitespace() {
            let here = text.lines().any(|line| line.starts_with(&format!("{field}:")));
            let known = NOT_HERE.iter().any(|(_, fields)| fields.contains(&field));
            if here == known {
                missing.push(format!(
                    "{section}.{field} is {}",
                    if here { "here after all" } else { "missing" }
                ));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

#[test]
fn sections_of_info_are_chosen_as_in_redis() {
    let mut client = Conversation::standalone();
    let titles = |text: String| {
        text.lines().filter_map(|line| line.strip_prefix("# ")).map(str::to_owned).collect::<Vec<_>>()
    };
    let default = titles(client.say("INFO"));
    assert_eq!(
        default,
        [
            "Server",
            "Clients",
            "Memory",
            "Persistence",
            "Stats",
            "Replication",
            "CPU",
            "Modules",
            "Errorstats",
            "Cluster",
            "Keyspace",
            "Raft"
        ]
    );
    assert_eq!(titles(client.say("INFO default")), default);
    let all = titles(client.say("INFO all"));
    assert_eq!(all.len(), default.len() + 2, "commandstats and latencystats: {all:?}");
    assert_eq!(titles(client.say("INFO everything")), all);
    assert_eq!(titles(client.say("INFO keyspace CPU nosuch cpu")), ["CPU", "Keyspace"]);
    client.expect("INFO nosuch", "$0\r\n\r\n");
}
