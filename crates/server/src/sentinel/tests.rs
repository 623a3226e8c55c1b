//! Conversations of clients with the Sentinel port, without sockets. The replies are those that a Redis Sentinel 7.0.15 gave to
//! the same words, but for addresses and times.

use super::scene::{Scene, Tunables};
use super::session::{Session, Step, Surroundings};
use super::testing::scene;
use crate::password::Password;
use crate::port::Port;
use crate::resp::RespSink;
use crate::testing::{Scripted, port};
use kvorum_cluster::{Mode, ServerId, ShardId, View};
use kvorum_node::HandoverError;
use std::cell::RefCell;
use std::sync::Arc;

struct Conversation {
    port: Port,
    session: Session,
    scene: Option<Scene>,
    tunables: Tunables,
    announced_port: Option<u16>,
    /// What subscribers of the server were told.
    told: RefCell<Vec<String>>,
    last: Step,
}

impl Conversation {
    fn with(replica: &Scripted) -> Conversation {
        let port = port();
        let client =
            port.clients.enter("127.0.0.1:50000".parse().unwrap(), "127.0.0.1:26379".parse().unwrap(), 8);
        let session = Session::new(client, &port);
        Conversation {
            port,
            session,
            scene: Some(scene(replica)),
            tunables: Tunables::default(),
            announced_port: None,
            told: RefCell::default(),
            last: Step::Read,
        }
    }

    /// Three servers that look like one Redis; server 1, whose Sentinel this is, leads.
    fn one_shard() -> Conversation {
        Conversation::with(&Scripted::leading(Mode::Standalone))
    }

    /// Three servers with three shards.
    fn three_shards() -> Conversation {
        Conversation::with(&Scripted::leading(Mode::Cluster))
    }

    fn change_view(&mut self, change: impl FnOnce(&mut View)) {
        change(Arc::make_mut(&mut self.scene.as_mut().unwrap().view));
    }

    fn silence(&mut self, servers: &[u64]) {
        self.change_view(|view| view.silent = servers.iter().copied().map(ServerId).collect());
    }

    /// Sends inline commands, a line each; returns the bytes of the replies.
    fn say(&mut self, words: &str) -> String {
        let lines: String = words.lines().map(|line| format!("{line}\r\n")).collect();
        self.send(lines.as_bytes())
    }

    fn send(&mut self, bytes: &[u8]) -> String {
        self.session.input(bytes.len()).extend_from_slice(bytes);
        let scene = self.scene.clone();
        let around = Surroundings {
            port: &self.port,
            id: &"1".repeat(40),
            announced_port: self.announced_port,
            tunables: &self.tunables,
            scene: &|| scene.clone(),
            publish: &|_, event, payload| self.told.borrow_mut().push(format!("{event} {payload}")),
        };
        let mut out = RespSink::default();
        self.last = Step::Again;
        while self.last == Step::Again {
            self.last = self.session.turn(&around, &mut out);
        }
        String::from_utf8_lossy(out.bytes()).into_owned()
    }

    #[track_caller]
    fn expect(&mut self, words: &str, replies: &str) {
        assert_eq!(self.say(words), replies, "{words}");
    }

    #[track_caller]
    fn expect_errors(&mut self, cases: &[(&str, &str)]) {
        for (words, error) in cases {
            self.expect(words, &format!("-{error}\r\n"));
        }
    }

    /// A flat reply as words with blanks between them.
    fn words(&mut self, words: &str) -> String {
        let reply = self.say(words);
        let lines = reply.split("\r\n").filter(|line| !line.starts_with(['$', '*', '%']) && !line.is_empty());
        lines.collect::<Vec<_>>().join(" ")
    }

    fn publish(&mut self, event: &str, payload: &str) -> String {
        let mut out = RespSink::default();
        self.session.on_event(&super::testing::event(event, payload), &mut out);
        String::from_utf8_lossy(out.bytes()).into_owned()
    }
}

#[test]
fn where_the_master_is() {
    let mut client = Conversation::one_shard();
    let (host, port) = {
        let scene = client.scene.as_ref().unwrap();
        let (host, port) = scene.topology().address(scene.topology().shards[0].replicas[0].id).unwrap();
        (host.to_owned(), port)
    };
    let address = format!("*2\r\n${}\r\n{host}\r\n${}\r\n{port}\r\n", host.len(), port.to_string().len());
    client.expect("SENTINEL GET-MASTER-ADDR-BY-NAME mymaster", &address);
    client.expect("sentinel get-master-addr-by-name shard-0", &address);
    client.expect("SENTINEL GET-MASTER-ADDR-BY-NAME nosuch", "*-1\r\n");
    // Nobody leads, but who did last is who clients may hope for.
    client.change_view(|view| {
        view.leaders.depose(ShardId(0), 9);
    });
    client.expect("SENTINEL GET-MASTER-ADDR-BY-NAME mymaster", &address);
    // What a server that is cut off knows may be old.
    client.silence(&[2, 3]);
    client.expect("SENTINEL GET-MASTER-ADDR-BY-NAME mymaster", "*-1\r\n");
    client.scene = None;
    client.expect("SENTINEL GET-MASTER-ADDR-BY-NAME mymaster", "*-1\r\n");
    client.expect("SENTINEL MASTERS", "*0\r\n");
}

#[test]
fn masters_have_the_fields_of_redis_in_its_order() {
    let mut client = Conversation::one_shard();
    let id = client.scene.as_ref().unwrap().topology().shards[0].replicas[0].node_id;
    let (host, port) = ("10.0.0.1", 7000);
    let expected = format!(
        "name mymaster ip {host} port {port} runid {id} flags master link-pending-commands 0 link-refcount 1 \
         last-ping-sent 0 last-ok-ping-reply 70 last-ping-reply 70 down-after-milliseconds 600 info-refresh 70 \
         role-reported master role-reported-time 5000 config-epoch 1 num-slaves 2 num-other-sentinels 2 quorum 2 \
         failover-timeout 180000 parallel-syncs 1"
    );
    assert_eq!(client.words("SENTINEL MASTER mymaster"), expected);
    assert_eq!(client.words("SENTINEL MASTERS"), expected);
    assert!(client.say("SENTINEL MASTERS").starts_with("*1\r\n*40\r\n$4\r\nname\r\n"));
    client.say("HELLO 3");
    assert!(client.say("SENTINEL MASTERS").starts_with("*1\r\n%20\r\n$4\r\nname\r\n"));
    let mut client = Conversation::three_shards();
    let all = client.words("SENTINEL MASTERS");
    for shard in 0..3 {
        assert!(all.contains(&format!("name shard-{shard} ")), "{all}");
    }
    client.expect_errors(&[("SENTINEL MASTER mymaster", "ERR No such master with that name")]);
    client
        .expect("ROLE", "*2\r\n$8\r\nsentinel\r\n*3\r\n$7\r\nshard-0\r\n$7\r\nshard-1\r\n$7\r\nshard-2\r\n");
}

#[test]
fn replicas_and_sentinels_have_the_fields_of_redis_in_its_order() {
    let mut client = Conversation::one_shard();
    let replica = "runid * flags slave link-pending-commands 0 link-refcount 1 last-ping-sent 0 last-ok-ping-reply 70 \
                   last-ping-reply 70 down-after-milliseconds 600 info-refresh 70 role-reported slave \
                   role-reported-time 5000 master-link-down-time 0 master-link-status ok master-host 10.0.0.1 \
                   master-port 7000 slave-priority 100 slave-repl-offset * replica-announced 1";
    let matches = |pattern: &str, text: &str| {
        kvorum_keyspace::glob::matches(pattern.as_bytes(), text.as_bytes(), false)
    };
    for command in ["REPLICAS", "SLAVES"] {
        let said = client.words(&format!("SENTINEL {command} mymaster"));
        assert!(
            matches(
                &format!(
                    "name 10.0.0.2:7000 ip 10.0.0.2 port 7000 {replica} name 10.0.0.3:7000 ip 10.0.0.3 port 7000 {replica}"
                ),
                &said
            ),
            "{said}"
        );
        assert!(said.contains("slave-repl-offset 850 "), "{said}");
    }
    let sentinel = |id: u64| {
        format!(
            "name {id:040x} ip 10.0.0.{id} port {} runid {id:040x} flags sentinel link-pending-commands 0 link-refcount 1 \
             last-ping-sent 0 last-ok-ping-reply 70 last-ping-reply 70 down-after-milliseconds 600 last-hello-message 70 \
             voted-leader ? voted-leader-epoch 0",
            26_378 + id
        )
    };
    let said = client.words("SENTINEL SENTINELS mymaster");
    assert_eq!(said, format!("{} {}", sentinel(2), sentinel(3)));
    for command in ["MASTER", "REPLICAS", "SLAVES", "SENTINELS", "CKQUORUM", "FAILOVER", "REMOVE"] {
        client.expect_errors(&[(&format!("SENTINEL {command} nosuch"), "ERR No such master with that name")]);
    }
    client.expect_errors(&[("SENTINEL SET nosuch quorum 2", "ERR No such master with that name")]);
}

#[test]
fn who_is_silent_is_down() {
    let mut client = Conversation::one_shard();
    client.silence(&[2]);
    let replicas = client.words("SENTINEL REPLICAS mymaster");
    assert!(replicas.contains("flags s_down,slave,disconnected "), "{replicas}");
    assert!(replicas.contains("s-down-time 0 down-after-milliseconds"), "{replicas}");
    assert!(replicas.contains("master-link-status err "), "{replicas}");
    assert!(client.words("SENTINEL SENTINELS mymaster").contains("flags s_down,sentinel,disconnected "));
    client.expect(
        "SENTINEL CKQUORUM mymaster",
        "+OK 2 usable Sentinels. Quorum and failover authorization can be reached\r\n",
    );
    client.silence(&[2, 3]);
    assert!(client.say("SENTINEL CKQUORUM mymaster").starts_with(
        "-NOQUORUM 1 usable Sentinels. Not enough available Sentinels to reach the specified quorum for this master. Not \
         enough available Sentinels to reach the majority and authorize a failover\r\n"
    ));
    // Cut off, it does not vouch for the master either.
    assert!(client.words("SENTINEL MASTER mymaster").contains("flags s_down,master "));
    assert!(client.words("INFO sentinel").contains("status=sdown"));
    client.scene.as_mut().unwrap().me = ServerId(3);
    client.silence(&[1]);
    assert!(client.words("SENTINEL MASTER mymaster").contains("flags s_down,master,disconnected "));
    client.expect("SENTINEL IS-MASTER-DOWN-BY-ADDR 10.0.0.1 7000 0 *", "*3\r\n:1\r\n$1\r\n*\r\n:0\r\n");
    client.expect("SENTINEL IS-MASTER-DOWN-BY-ADDR 10.0.0.1 7001 0 *", "*3\r\n:0\r\n$1\r\n*\r\n:0\r\n");
}

#[test]
fn what_is_wrong_is_said_in_the_words_of_redis() {
    let mut client = Conversation::one_shard();
    let unknown = "ERR unknown command";
    client.expect_errors(&[
        ("GET x", &format!("{unknown} 'GET', with args beginning with: 'x' ")),
        ("CLUSTER NODES", &format!("{unknown} 'CLUSTER', with args beginning with: 'NODES' ")),
        ("ECHO x", &format!("{unknown} 'ECHO', with args beginning with: 'x' ")),
        (
            "CONFIG GET databases",
            &format!("{unknown} 'CONFIG', with args beginning with: 'GET' 'databases' "),
        ),
        ("SELECT 0", &format!("{unknown} 'SELECT', with args beginning with: '0' ")),
        ("SSUBSCRIBE a", &format!("{unknown} 'SSUBSCRIBE', with args beginning with: 'a' ")),
        ("SENTINEL", "ERR wrong number of arguments for 'sentinel' command"),
        ("SENTINEL BOGUS", "ERR unknown subcommand 'BOGUS'. Try SENTINEL HELP."),
        ("SENTINEL MASTERS x", "ERR wrong number of arguments for 'sentinel|masters' command"),
        (
            "SENTINEL GET-MASTER-ADDR-BY-NAME",
            "ERR wrong number of arguments for 'sentinel|get-master-addr-by-name' command",
        ),
        ("SENTINEL IS-MASTER-DOWN-BY-ADDR 1 x 0 *", "ERR value is not an integer or out of range"),
        (
            "SENTINEL CONFIG GET",
            "ERR Only SENTINEL CONFIG GET <option> / SET <option> <value> are supported.",
        ),
        ("SENTINEL CONFIG SET foo bar", "ERR Invalid argument 'foo' to SENTINEL CONFIG SET"),
        (
            "SENTINEL CONFIG SET resolve-hostnames maybe",
            "ERR Invalid value 'maybe' to SENTINEL CONFIG SET 'resolve-hostnames'",
        ),
        ("SENTINEL SET mymaster quorum", "ERR wrong number of arguments for 'sentinel|set' command"),
        ("SENTINEL SET mymaster foo 2", "ERR Unknown option or number of arguments for SENTINEL SET 'foo'"),
        ("SENTINEL SET mymaster quorum x", "ERR Invalid argument 'x' for SENTINEL SET 'quorum'"),
        (
            "SENTINEL SET mymaster quorum 2 foo",
            "ERR Unknown option or number of arguments for SENTINEL SET 'foo'",
        ),
        ("SENTINEL SIMULATE-FAILURE foo", "ERR Unknown failure simulation specified"),
        ("SENTINEL DEBUG foo", "ERR Unknown option or number of arguments for SENTINEL DEBUG 'foo'"),
        ("SENTINEL MONITOR mymaster 127.0.0.1 1 1", "ERR Duplicate master name."),
        ("SENTINEL MONITOR z 127.0.0.1 x 1", "ERR Invalid port"),
        ("SENTINEL MONITOR z 127.0.0.1 1 x", "ERR Invalid quorum"),
        ("SENTINEL MONITOR z 127.0.0.1 1 0", "ERR Quorum must be 1 or greater."),
        ("PUBLISH a b", "ERR Only HELLO messages are accepted by Sentinel instances."),
        ("SUBSCRIBE", "ERR wrong number of arguments for 'subscribe' command"),
        ("PING a b", "ERR wrong number of arguments for 'ping' command"),
        ("SHUTDOWN foo", "ERR syntax error"),
        ("HELLO 4", "NOPROTO unsupported protocol version"),
    ]);
    assert!(
        client.say("SENTINEL MONITOR z 127.0.0.1 1 1").starts_with("-ERR SENTINEL MONITOR is not supported")
    );
    assert!(client.say("SENTINEL REMOVE mymaster").starts_with("-ERR SENTINEL REMOVE is not supported"));
    assert!(
        client.say("SENTINEL SET mymaster notification-script /x").starts_with("-ERR Reconfiguration of")
    );
}

#[test]
fn small_commands() {
    let mut client = Conversation::one_shard();
    client.expect(
        "PING\nPING a\nACL WHOAMI\nCLIENT SETNAME a\nCLIENT GETNAME\nCLIENT ID",
        "+PONG\r\n$1\r\na\r\n$7\r\ndefault\r\n+OK\r\n$1\r\na\r\n:1\r\n",
    );
    client.expect("CLIENT SETINFO lib-name x\nCLIENT SETINFO lib-ver 1", "+OK\r\n+OK\r\n");
    client.expect("PUBLISH __sentinel__:hello x", ":1\r\n");
    client.expect("SENTINEL MYID", &format!("$40\r\n{}\r\n", "1".repeat(40)));
    client.expect(
        "SENTINEL PENDING-SCRIPTS\nSENTINEL FLUSHCONFIG\nSENTINEL RESET my*\nSENTINEL RESET x",
        "*0\r\n+OK\r\n:1\r\n:0\r\n",
    );
    client.expect(
        "SENTINEL SIMULATE-FAILURE help",
        "*2\r\n$20\r\ncrash-after-election\r\n$21\r\ncrash-after-promotion\r\n",
    );
    client.expect("SENTINEL CONFIG GET announce-ip", "*2\r\n$11\r\nannounce-ip\r\n$0\r\n\r\n");
    client.expect("SENTINEL CONFIG SET announce-hostnames no", "+OK\r\n");
    client.expect("SENTINEL CONFIG GET announce-port", "*2\r\n$13\r\nannounce-port\r\n$1\r\n0\r\n");
    client.announced_port = Some(36_379);
    client.expect("SENTINEL CONFIG GET announce-port", "*2\r\n$13\r\nannounce-port\r\n$5\r\n36379\r\n");
    client.expect("SENTINEL CONFIG SET announce-port 36379", "+OK\r\n");
    assert!(client.say("SENTINEL HELP").starts_with("*49\r\n+SENTINEL <subcommand>"));
    assert!(client.say("SENTINEL DEBUG").starts_with("*26\r\n$11\r\nINFO-PERIOD\r\n"));
    assert!(
        client
            .say("SENTINEL INFO-CACHE mymaster nosuch")
            .starts_with("*2\r\n$8\r\nmymaster\r\n*3\r\n*2\r\n:70\r\n$-1\r\n")
    );
    client.expect(
        "HELLO 3",
        "%6\r\n$6\r\nserver\r\n$5\r\nredis\r\n$7\r\nversion\r\n$6\r\n7.0.15\r\n$5\r\nproto\r\n:3\r\n$2\r\nid\r\n:1\r\n\
         $4\r\nmode\r\n$8\r\nsentinel\r\n$7\r\nmodules\r\n*0\r\n",
    );
    client.expect("RESET\nSENTINEL GET-MASTER-ADDR-BY-NAME nosuch", "+RESET\r\n*-1\r\n");
    client.expect("QUIT\nPING", "+OK\r\n");
    assert_eq!(client.last, Step::Close);
}

#[test]
fn info_has_the_sections_of_a_sentinel() {
    let mut client = Conversation::one_shard();
    let info = client.say("INFO");
    let titles: Vec<&str> = info.lines().filter(|line| line.starts_with("# ")).collect();
    assert_eq!(titles, ["# Server", "# Clients", "# Stats", "# CPU", "# Sentinel"]);
    assert!(info.contains("redis_mode:sentinel\r\n"), "{info}");
    assert!(info.contains(
        "sentinel_masters:1\r\nsentinel_tilt:0\r\nsentinel_tilt_since_seconds:-1\r\nsentinel_running_scripts:0\r\n\
         sentinel_scripts_queue_length:0\r\nsentinel_simulate_failure_flags:0\r\n\
         master0:name=mymaster,status=ok,address=10.0.0.1:7000,slaves=2,sentinels=3\r\n"
    ));
    client.expect("INFO bogus\nINFO persistence", "$0\r\n\r\n$0\r\n\r\n");
    assert!(client.say("INFO sentinel").contains("\r\n# Sentinel\r\n"));
    assert!(!client.say("INFO sentinel").contains("# Server"));
}

#[test]
fn command_speaks_of_the_commands_of_a_sentinel() {
    let mut client = Conversation::one_shard();
    // Redis has fifteen there: not QUIT and RESET, which clients send all the same.
    client.expect("COMMAND COUNT", ":17\r\n");
    client.expect("COMMAND INFO get", "*1\r\n$-1\r\n");
    assert!(client.say("COMMAND INFO sentinel").contains("sentinel|get-master-addr-by-name"));
    let listed = client.say("COMMAND LIST");
    assert!(listed.contains("sentinel|masters") && !listed.contains("\r\nset\r\n"), "{listed}");
    assert!(client.say("COMMAND DOCS sentinel|masters").contains("List the monitored masters"));
    assert!(client.say("COMMAND").starts_with("*17\r\n"));
}

#[test]
fn what_is_set_is_remembered_and_shown() {
    let mut client = Conversation::one_shard();
    client.expect(
        "SENTINEL SET mymaster down-after-milliseconds 5000 failover-timeout 60000 parallel-syncs 2 quorum 2 auth-pass x",
        "+OK\r\n",
    );
    let said = client.words("SENTINEL MASTER mymaster");
    assert!(
        said.contains("down-after-milliseconds 5000 ")
            && said.ends_with("failover-timeout 60000 parallel-syncs 2")
    );
    client.expect_errors(&[(
        "SENTINEL SET mymaster quorum 1",
        "ERR the quorum is the majority of the servers, 2, and cannot be changed",
    )]);
}

#[test]
fn what_is_set_is_told() {
    let mut client = Conversation::one_shard();
    client.expect("SENTINEL SET mymaster Failover-Timeout 60000 auth-pass secret quorum 2", "+OK\r\n");
    client.expect(
        "SENTINEL SET mymaster auth-user me quorum x parallel-syncs 3",
        "-ERR Invalid argument 'x' for SENTINEL SET 'quorum'\r\n",
    );
    client.expect_errors(&[("SENTINEL SET nosuch quorum 2", "ERR No such master with that name")]);
    let told = |client: &Conversation| client.told.borrow_mut().split_off(0);
    let head = "+set master mymaster 10.0.0.1 7000";
    assert_eq!(
        told(&client),
        ["Failover-Timeout 60000", "auth-pass ******", "quorum 2", "auth-user me"]
            .map(|set| format!("{head} {set}"))
    );
    // Few events, however long the request.
    let many: String = (1..=500).map(|n| format!(" parallel-syncs {n} PARALLEL-SYNCS 1")).collect();
    client.expect(&format!("SENTINEL SET mymaster{many}"), "+OK\r\n");
    assert_eq!(told(&client), [format!("{head} PARALLEL-SYNCS 1")]);
    assert!(client.words("SENTINEL MASTER mymaster").ends_with("parallel-syncs 1"));
}

#[test]
fn subscriptions_in_resp2() {
    let mut client = Conversation::one_shard();
    client.expect(
        "SUBSCRIBE a b\nPSUBSCRIBE c*\nPING\nPING x",
        "*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n*3\r\n$9\r\nsubscribe\r\n$1\r\nb\r\n:2\r\n\
         *3\r\n$10\r\npsubscribe\r\n$2\r\nc*\r\n:3\r\n*2\r\n$4\r\npong\r\n$0\r\n\r\n*2\r\n$4\r\npong\r\n$1\r\nx\r\n",
    );
    let refused = |name: &str| {
        format!(
            "ERR Can't execute '{name}': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET are allowed in this context"
        )
    };
    client.expect_errors(&[
        ("GET a", "ERR unknown command 'GET', with args beginning with: 'a' "),
        ("SENTINEL MASTERS", &refused("sentinel|masters")),
        ("INFO", &refused("info")),
        ("HELLO 3", &refused("hello")),
    ]);
    assert!(
        client.port.clients.all()[0]
            .describe(std::time::Instant::now())
            .contains("flags=P db=0 sub=2 psub=1 ")
    );
    client.expect(
        "UNSUBSCRIBE b a\nPUNSUBSCRIBE\nPING\nUNSUBSCRIBE\nPUNSUBSCRIBE",
        "*3\r\n$11\r\nunsubscribe\r\n$1\r\nb\r\n:2\r\n*3\r\n$11\r\nunsubscribe\r\n$1\r\na\r\n:1\r\n\
         *3\r\n$12\r\npunsubscribe\r\n$2\r\nc*\r\n:0\r\n+PONG\r\n*3\r\n$11\r\nunsubscribe\r\n$-1\r\n:0\r\n\
         *3\r\n$12\r\npunsubscribe\r\n$-1\r\n:0\r\n",
    );
    client.say("SUBSCRIBE a");
    client.expect("RESET\nSENTINEL FLUSHCONFIG", "+RESET\r\n+OK\r\n");
}

#[test]
fn subscriptions_in_resp3() {
    let mut client = Conversation::one_shard();
    client.say("HELLO 3");
    client.expect(
        "SUBSCRIBE +switch-master\nPING\nSENTINEL GET-MASTER-ADDR-BY-NAME x\nUNSUBSCRIBE\nUNSUBSCRIBE",
        ">3\r\n$9\r\nsubscribe\r\n$14\r\n+switch-master\r\n:1\r\n+PONG\r\n_\r\n\
         >3\r\n$11\r\nunsubscribe\r\n$14\r\n+switch-master\r\n:0\r\n>3\r\n$11\r\nunsubscribe\r\n_\r\n:0\r\n",
    );
}

#[test]
fn events_go_to_those_who_subscribed() {
    let mut client = Conversation::one_shard();
    assert_eq!(client.publish("+sdown", "x"), "");
    client.say("SUBSCRIBE +switch-master\nPSUBSCRIBE +s*");
    assert_eq!(
        client.publish("+sdown", "x"),
        "*4\r\n$8\r\npmessage\r\n$3\r\n+s*\r\n$6\r\n+sdown\r\n$1\r\nx\r\n"
    );
    assert_eq!(client.publish("-sdown", "x"), "");
    assert_eq!(
        client.publish("+switch-master", "m a 1 b 2"),
        "*3\r\n$7\r\nmessage\r\n$14\r\n+switch-master\r\n$9\r\nm a 1 b 2\r\n\
         *4\r\n$8\r\npmessage\r\n$3\r\n+s*\r\n$14\r\n+switch-master\r\n$9\r\nm a 1 b 2\r\n"
    );
    let mut client = Conversation::one_shard();
    client.say("HELLO 3\nSUBSCRIBE +sdown");
    assert_eq!(client.publish("+sdown", "x"), ">3\r\n$7\r\nmessage\r\n$6\r\n+sdown\r\n$1\r\nx\r\n");
}

#[test]
fn a_password_of_the_server_is_one_of_the_sentinel() {
    let mut client = Conversation::one_shard();
    client.port.settings.requirepass.set(Password::from(&b"secret"[..]));
    client.session = Session::new(client.port.clients.all()[0].clone(), &client.port);
    let (missing, wrong) =
        ("NOAUTH Authentication required.", "WRONGPASS invalid username-password pair or user is disabled.");
    client.expect_errors(&[
        ("PING", missing),
        ("SENTINEL MASTERS", missing),
        ("SUBSCRIBE a", missing),
        ("AUTH x", wrong),
        ("AUTH default x", wrong),
    ]);
    client.expect("AUTH secret\nPING", "+OK\r\n+PONG\r\n");
    client.session = Session::new(client.port.clients.all()[0].clone(), &client.port);
    assert!(client.say("HELLO 2 AUTH default secret").starts_with("*12\r\n"));
}

#[test]
fn a_failover_is_carried_out_by_whoever_runs_the_session() {
    let mut client = Conversation::three_shards();
    assert_eq!(client.say("SENTINEL FAILOVER shard-1\nPING"), "");
    assert_eq!(client.last, Step::Failover(ShardId(1)));
    let reply = |client: &Conversation, outcome: Result<(), HandoverError>| {
        let mut out = RespSink::default();
        client.session.failed_over(outcome, &mut out);
        String::from_utf8_lossy(out.bytes()).into_owned()
    };
    assert_eq!(reply(&client, Ok(())), "+OK\r\n");
    assert_eq!(reply(&client, Err(HandoverError::NoHeir)), "-NOGOODSLAVE No suitable replica to promote\r\n");
    assert_eq!(reply(&client, Err(HandoverError::InProgress)), "-INPROG Failover already in progress\r\n");
    // What was sent behind it is answered then.
    assert_eq!(client.send(b""), "+PONG\r\n");
    client.scene.as_mut().unwrap().handed_over.insert(ShardId(1));
    client.expect_errors(&[("SENTINEL FAILOVER shard-1", "INPROG Failover already in progress")]);
    let said = client.words("SENTINEL MASTER shard-1");
    assert!(said.contains(
        "flags master,failover_in_progress link-pending-commands 0 link-refcount 1 failover-state "
    ));
}

#[test]
fn what_a_client_may_send_and_subscribe_to_has_bounds() {
    let mut client = Conversation::one_shard();
    let error = "-ERR Protocol error: invalid bulk length\r\n";
    assert_eq!(client.send(b"*1\r\n$1048577\r\n"), error);
    assert_eq!(client.last, Step::Close);
    let mut client = Conversation::one_shard();
    client.send(format!("*2000000\r\n{}", "$1\r\na\r\n".repeat(20_000)).as_bytes());
    assert!(client.session.is_flooded());
    let mut client = Conversation::one_shard();
    let names: Vec<String> = (0..1025).map(|n| n.to_string()).collect();
    client.expect_errors(&[(
        &format!("SUBSCRIBE {}", names.join(" ")),
        "ERR too many subscriptions of one client",
    )]);
    let long = "x".repeat(200_000);
    assert!(
        client
            .send(format!("*2\r\n$9\r\nSUBSCRIBE\r\n$200000\r\n{long}\r\n").as_bytes())
            .starts_with("*3\r\n")
    );
    let more = client.send(format!("*2\r\n$10\r\nPSUBSCRIBE\r\n$200000\r\n{long}\r\n").as_bytes());
    assert_eq!(more, "-ERR too many subscriptions of one client\r\n");
}

proptest::proptest! {
    /// Whatever a client sends, in whatever pieces, is answered or refused, and never a panic.
    #[test]
    fn invariant_any_bytes_are_taken(pieces in proptest::collection::vec(proptest::collection::vec(proptest::num::u8::ANY, 0..64), 0..8)) {
        let mut client = Conversation::one_shard();
        for piece in &pieces {
            client.send(piece);
            if client.last == Step::Close {
                break;
            }
        }
    }
}
