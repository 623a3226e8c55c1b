//! Golden scripts: command lines and the replies they must get, played on whatever answers commands.
//!
//! ```text
//! # A comment; the first one says what the script is for.
//! > SET k "a value\r\n"        a command line; words may be quoted, with \n \r \t \\ \" \xHH inside
//! OK                           its reply in the notation of redis-cli, up to an empty line or the next command
//! b> GET k                     the same on another connection, which is opened when it is first named
//! b<                           what comes next on that connection, without a command
//!
//! @clock +1000                 time goes on by that many milliseconds
//! @closed b                    the server closes that connection (`@closed` alone: the script's own)
//! @silent b                    nothing comes on that connection
//! @resp2                       the script makes no sense on a connection that was switched to RESP3 before
//! ```
//!
//! These lines are about the next command or reply:
//!
//! ```text
//! @send                        it is only sent; its reply, if there is one, is read by `<`
//! @raw                         its one word is sent as it is, instead of as a request
//! @unordered                   the order inside its arrays does not count
//! @like                        `*` in the expected text stands for any text
//! @range 90 100                it is an integer from 90 to 100; no text is expected
//! @member                      it is one of the lines that are expected
//! @differs <id>                it is not compared with Redis, for the reason of that name in docs/differences.md
//! ```
//!
//! The text of a reply is the same in RESP2 and RESP3. What a connection of RESP3 must get besides the text, the types, is compared with
//! a real Redis ([`Played`]).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::binary::workspace;
use crate::plain::Plain;
use crate::reply::Reply;
use crate::resp::encode;

/// The connection that a script begins with.
const OWN: &str = "";
/// How long a connection has to be silent to count as silent.
const SILENCE: Duration = Duration::from_millis(100);

/// A script.
#[derive(Clone, Debug)]
pub struct Script {
    /// `family/behaviour`.
    pub name: String,
    text: String,
    steps: Vec<Step>,
    resp2_only: bool,
}

#[derive(Clone, Debug)]
enum Step {
    Exchange(Exchange),
    Clock(u64),
    Closed(String),
    Silent(String),
}

#[derive(Clone, Debug)]
struct Exchange {
    /// Of the command; counted from 0.
    line: usize,
    connection: String,
    /// `None`: only a reply is awaited.
    command: Option<Vec<Vec<u8>>>,
    raw: bool,
    /// Whether a reply is awaited.
    replies: bool,
    expected: Vec<String>,
    rule: Rule,
    differs: bool,
}

/// How a reply is compared with what is expected.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Rule {
    Equal,
    Unordered,
    Like,
    Range(i64, i64),
    Member,
}

/// Who answers.
pub trait Subject {
    /// The reply to a command on the connection of that name.
    ///
    /// # Errors
    /// When there is none.
    fn call(&mut self, connection: &str, argv: &[Vec<u8>]) -> Result<Reply>;
    /// Lets time go on.
    fn sleep(&mut self, ms: u64);
    /// Sends bytes as they are.
    ///
    /// # Errors
    /// When there are no connections here, or it is broken.
    fn send(&mut self, _connection: &str, _bytes: &[u8]) -> Result<()> {
        bail!("there are no connections here")
    }
    /// Waits for a reply.
    ///
    /// # Errors
    /// When there are no connections here, or none comes.
    fn receive(&mut self, _connection: &str) -> Result<Reply> {
        bail!("there are no connections here")
    }
    /// Whether the server closes the connection, after nothing more.
    ///
    /// # Errors
    /// When it does not.
    fn closed(&mut self, _connection: &str) -> Result<()> {
        bail!("there are no connections here")
    }
    /// Whether nothing comes.
    ///
    /// # Errors
    /// When something does.
    fn silent(&mut self, _connection: &str) -> Result<()> {
        bail!("there are no connections here")
    }
}

/// What came of a script.
#[derive(Debug, Default)]
pub struct Played {
    /// What does not hold.
    pub faults: Vec<String>,
    /// The script with the replies as they came.
    pub updated: String,
    /// The replies by line, for [`Played::differences`].
    replies: Vec<(usize, Reply)>,
}

impl Script {
    /// Reads a script.
    ///
    /// # Errors
    /// With the line that is none.
    pub fn parse(name: &str, text: &str) -> Result<Script> {
        ensure!(text.starts_with("# "), "{name} does not open with a comment on its purpose");
        let reasons = reasons()?;
        let mut script =
            Script { name: name.to_owned(), text: text.to_owned(), steps: Vec::new(), resp2_only: false };
        let (mut raw, mut replies, mut rule, mut differs) = (false, true, Rule::Equal, false);
        let mut lines = text.lines().enumerate().peekable();
        while let Some((line, content)) = lines.next() {
            let at = || format!("{name}:{}: {content}", line + 1);
            if let Some(directive) = content.strip_prefix('@') {
                let (word, rest) = directive.split_once(' ').unwrap_or((directive, ""));
                match (word, rest) {
                    ("clock", _) => {
                        let ms = rest.strip_prefix('+').and_then(|ms| ms.parse().ok()).with_context(at)?;
                        script.steps.push(Step::Clock(ms));
                    }
                    ("closed", _) => script.steps.push(Step::Closed(rest.to_owned())),
                    ("silent", _) => script.steps.push(Step::Silent(rest.to_owned())),
                    ("resp2", "") => script.resp2_only = true,
                    ("send", "") => replies = false,
                    ("raw", "") => raw = true,
                    ("unordered", "") => rule = Rule::Unordered,
                    ("like", "") => rule = Rule::Like,
                    ("member", "") => rule = Rule::Member,
                    ("range", _) => {
                        let (low, high) = rest.split_once(' ').with_context(at)?;
                        rule = Rule::Range(low.parse().with_context(at)?, high.parse().with_context(at)?);
                    }
                    ("differs", _) => {
                        let id = rest.split([' ', ':']).next().unwrap_or_default();
                        ensure!(reasons.contains_key(id), "{}: docs/differences.md knows no {id:?}", at());
                        differs = true;
                    }
                    _ => bail!("{}: no such directive", at()),
                }
            } else if let Some((connection, command)) = command_of(content) {
                let mut expected = Vec::new();
                while let Some((_, reply)) = lines.next_if(|(_, next)| {
                    !next.is_empty() && !next.starts_with('@') && command_of(next).is_none()
                }) {
                    expected.push(reply.to_owned());
                }
                let command = command.map(words).transpose().with_context(at)?;
                ensure!(replies || command.is_some(), "{}: nothing to send", at());
                ensure!(!raw || command.as_ref().is_some_and(|c| c.len() == 1), "{}: one word", at());
                script.steps.push(Step::Exchange(Exchange {
                    line,
                    connection: connection.to_owned(),
                    command,
                    raw: std::mem::take(&mut raw),
                    replies: std::mem::replace(&mut replies, true),
                    expected,
                    rule: std::mem::replace(&mut rule, Rule::Equal),
                    differs: std::mem::take(&mut differs),
                }));
            } else {
                ensure!(content.is_empty() || content.starts_with('#'), at());
            }
        }
        Ok(script)
    }

    /// All scripts below a folder, at any depth, by name.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn all(root: &Path) -> Result<Vec<Script>> {
        let mut scripts = Vec::new();
        let mut folders = vec![root.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(&folder).with_context(|| format!("{}", folder.display()))? {
                let path = entry?.path();
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                let name = path.strip_prefix(root).expect("it lies below").display().to_string();
                let text = std::fs::read_to_string(&path).with_context(|| name.clone())?;
                scripts.push(Script::parse(&name, &text)?);
            }
        }
        scripts.sort_by(|a, b| a.name.cmp(&b.name));
        ensure!(!scripts.is_empty(), "no script below {}", root.display());
        Ok(scripts)
    }

    /// Whether it says nothing about connections that were switched to RESP3 before.
    pub fn is_resp2_only(&self) -> bool {
        self.resp2_only
    }

    /// Plays it. `oracle` says whether the subject is Redis itself, to which `@differs` does not apply.
    pub fn play(&self, subject: &mut impl Subject, oracle: bool) -> Played {
        let mut played = Played::default();
        let mut replies: BTreeMap<usize, String> = BTreeMap::new();
        for step in &self.steps {
            let result = match step {
                Step::Clock(ms) => {
                    subject.sleep(*ms);
                    Ok(())
                }
                Step::Closed(connection) => {
                    subject.closed(connection).with_context(|| format!("@closed {connection}"))
                }
                Step::Silent(connection) => {
                    subject.silent(connection).with_context(|| format!("@silent {connection}"))
                }
                Step::Exchange(exchange) => exchange.play(subject).map(|reply| {
                    let Some(reply) = reply else { return };
                    let (reply, text) = match exchange.rule {
                        // A map has an order of its own once it is flat.
                        Rule::Unordered => (reply.clone().sorted(), reply.flat().sorted().render()),
                        _ => (reply.clone(), reply.render()),
                    };
                    let excused = oracle && exchange.differs;
                    if !excused && !exchange.rule.holds(&exchange.expected, &text) {
                        let command = self.text.lines().nth(exchange.line).unwrap_or_default();
                        played.faults.push(format!(
                            "{}:{}: {command}\n  script: {}\n  reply:  {text}",
                            self.name,
                            exchange.line + 1,
                            exchange.expected.join("\n"),
                        ));
                    }
                    if exchange.rule.is_exact() && !(oracle && exchange.differs) {
                        replies.insert(exchange.line, text);
                    }
                    if !exchange.differs {
                        played.replies.push((exchange.line, exchange.rule.comparable(reply)));
                    }
                }),
            };
            if let Err(why) = result {
                played.faults.push(match step {
                    Step::Exchange(exchange) => format!("{}:{}: {why:#}", self.name, exchange.line + 1),
                    _ => format!("{}: {why:#}", self.name),
                });
                break;
            }
        }
        played.updated = self.with(&replies);
        played
    }

    /// The text with these replies, by the line of the command.
    fn with(&self, replies: &BTreeMap<usize, String>) -> String {
        let mut updated = String::new();
        let expected: BTreeSet<usize> = self
            .steps
            .iter()
            .filter_map(|step| match step {
                Step::Exchange(e) if replies.contains_key(&e.line) => {
                    Some(e.line + 1..=e.line + e.expected.len())
                }
                _ => None,
            })
            .flatten()
            .collect();
        for (line, content) in self.text.lines().enumerate() {
            if !expected.contains(&line) {
                let _ = writeln!(updated, "{content}");
            }
            if let Some(reply) = replies.get(&line) {
                let _ = writeln!(updated, "{reply}");
            }
        }
        updated
    }
}

impl Exchange {
    fn play(&self, subject: &mut impl Subject) -> Result<Option<Reply>> {
        match &self.command {
            Some(words) if self.replies && !self.raw => {
                return subject.call(&self.connection, words).map(Some);
            }
            Some(words) if self.raw => subject.send(&self.connection, &words[0])?,
            Some(words) => subject.send(&self.connection, &encode(words))?,
            None => {}
        }
        if self.replies { subject.receive(&self.connection).map(Some) } else { Ok(None) }
    }
}

impl Rule {
    fn is_exact(&self) -> bool {
        matches!(self, Rule::Equal | Rule::Unordered)
    }

    fn holds(&self, expected: &[String], reply: &str) -> bool {
        let text = expected.join("\n");
        match self {
            Rule::Equal | Rule::Unordered => text == reply,
            Rule::Like => is_like(&text, reply),
            Rule::Member => expected.iter().any(|line| line == reply),
            Rule::Range(low, high) => {
                let number = reply.strip_prefix("(integer) ").and_then(|n| n.parse::<i64>().ok());
                number.is_some_and(|n| (*low..=*high).contains(&n))
            }
        }
    }

    /// What of a reply another server must say, too.
    fn comparable(&self, reply: Reply) -> Reply {
        match (self, reply) {
            (Rule::Equal | Rule::Unordered, reply) => reply,
            // Only its type.
            (_, Reply::Int(_)) => Reply::Int(0),
            (_, Reply::Simple(_)) => Reply::Simple(String::new()),
            (_, Reply::Bulk(_)) => Reply::Bulk(Vec::new()),
            (_, Reply::Verbatim(format, _)) => Reply::Verbatim(format, Vec::new()),
            (_, Reply::Error(_)) => Reply::Error(Vec::new()),
            (_, Reply::Array(_)) => Reply::Array(Vec::new()),
            (_, Reply::Map(_)) => Reply::Map(Vec::new()),
            (_, other) => other,
        }
    }
}

impl Played {
    /// Where the replies of two subjects to one script differ, types included.
    pub fn differences(&self, script: &Script, other: &Played) -> Vec<String> {
        let lines: Vec<&str> = script.text.lines().collect();
        let mut differences = Vec::new();
        for ((line, ours), (other_line, theirs)) in self.replies.iter().zip(&other.replies) {
            debug_assert_eq!(line, other_line);
            if ours != theirs {
                differences.push(format!(
                    "{}:{}: {}\n  ours:  {ours:?}\n  Redis: {theirs:?}",
                    script.name,
                    line + 1,
                    lines[*line]
                ));
            }
        }
        differences
    }
}

/// `name> command` or `name<`.
fn command_of(line: &str) -> Option<(&str, Option<&str>)> {
    let end = line.find(|c: char| !c.is_ascii_lowercase()).unwrap_or(line.len());
    let (name, rest) = line.split_at(end);
    match rest.strip_prefix("> ") {
        Some(command) => Some((name, Some(command))),
        None => (rest == "<").then_some((name, None)),
    }
}

/// Whether `text` is `pattern` with some text for each `*`.
fn is_like(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let Some(last) = parts.next_back() else { return rest.is_empty() };
    for part in parts {
        match rest.split_once(part) {
            Some((_, after)) => rest = after,
            None => return false,
        }
    }
    rest.ends_with(last)
}

/// The reasons for which Kvorum may differ from Redis, and what they are: the table of docs/differences.md.
///
/// # Errors
/// When it cannot be read, or has no table.
pub fn reasons() -> Result<BTreeMap<String, String>> {
    let path = workspace().join("docs/differences.md");
    let text = std::fs::read_to_string(&path).with_context(|| format!("{}", path.display()))?;
    let row = |line: &str| {
        let mut cells = line.strip_prefix("| `")?.splitn(2, '`');
        Some((cells.next()?.to_owned(), cells.next()?.trim_matches([' ', '|']).to_owned()))
    };
    let reasons: BTreeMap<String, String> = text.lines().filter_map(row).collect();
    ensure!(!reasons.is_empty(), "{} has no table", path.display());
    Ok(reasons)
}

/// Splits a command line as redis-cli does, quotes and escapes included.
///
/// # Errors
/// When a quote does not end.
pub fn words(line: &str) -> Result<Vec<Vec<u8>>> {
    let mut words = Vec::new();
    let mut bytes = line.bytes().peekable();
    loop {
        while bytes.next_if_eq(&b' ').is_some() {}
        let Some(&first) = bytes.peek() else { return Ok(words) };
        let mut word = Vec::new();
        if first == b'"' {
            bytes.next();
            loop {
                match bytes.next().context("no closing quote")? {
                    b'"' => break,
                    b'\\' => word.push(match bytes.next().context("no escape")? {
                        b'n' => b'\n',
                        b'r' => b'\r',
                        b't' => b'\t',
                        b'x' => {
                            let digits =
                                [bytes.next().context("no digit")?, bytes.next().context("no digit")?];
                            u8::from_str_radix(std::str::from_utf8(&digits)?, 16)?
                        }
                        other => other,
                    }),
                    byte => word.push(byte),
                }
            }
        } else {
            while let Some(byte) = bytes.next_if(|byte| *byte != b' ') {
                word.push(byte);
            }
        }
        words.push(word);
    }
}

/// Connections to one address, by name.
#[derive(Debug)]
pub struct Clients {
    addr: String,
    resp3: bool,
    open: BTreeMap<String, Plain>,
}

impl Clients {
    /// No connection yet. With `resp3` each begins with `HELLO 3`.
    pub fn new(addr: &str, resp3: bool) -> Clients {
        Clients { addr: addr.to_owned(), resp3, open: BTreeMap::new() }
    }

    fn connection(&mut self, name: &str) -> Result<&mut Plain> {
        if !self.open.contains_key(name) {
            let mut connection =
                Plain::open(&self.addr).with_context(|| format!("connecting to {}", self.addr))?;
            if self.resp3 {
                let hello = connection.call(&["HELLO", "3"])?;
                ensure!(matches!(hello, Reply::Map(_)), "HELLO 3 answers {hello:?}");
            }
            self.open.insert(name.to_owned(), connection);
        }
        self.open.get_mut(name).context("it was opened just now")
    }
}

impl Subject for Clients {
    fn call(&mut self, connection: &str, argv: &[Vec<u8>]) -> Result<Reply> {
        Ok(self.connection(connection)?.call(argv)?)
    }

    fn sleep(&mut self, ms: u64) {
        std::thread::sleep(Duration::from_millis(ms));
    }

    fn send(&mut self, connection: &str, bytes: &[u8]) -> Result<()> {
        Ok(self.connection(connection)?.send(bytes)?)
    }

    fn receive(&mut self, connection: &str) -> Result<Reply> {
        Ok(self.connection(connection)?.receive()?)
    }

    fn closed(&mut self, connection: &str) -> Result<()> {
        let began = Instant::now();
        match self.connection(connection)?.receive() {
            Ok(reply) => bail!("it is open and says {}", reply.render()),
            Err(e)
                if matches!(
                    e.kind(),
                    std::io::ErrorKind::UnexpectedEof | std::io::ErrorKind::ConnectionReset
                ) =>
            {
                self.open.remove(connection);
                Ok(())
            }
            Err(e) => bail!("it is open after {:?}: {e}", began.elapsed()),
        }
    }

    fn silent(&mut self, connection: &str) -> Result<()> {
        let silent = self.connection(connection)?.is_silent(SILENCE)?;
        ensure!(silent, "something came");
        Ok(())
    }
}

impl Clients {
    /// The connection that a script begins with, for what is done before and after it.
    ///
    /// # Errors
    /// What the system says.
    pub fn own(&mut self) -> Result<&mut Plain> {
        self.connection(OWN)
    }
}

/// The scripts below a folder of the workspace, by their paths.
fn below(folder: &str) -> Result<Vec<(PathBuf, Script)>> {
    let root = workspace().join(folder);
    let prefix = Path::new(folder).file_name().unwrap_or_default().to_string_lossy().into_owned();
    let wanted = std::env::var("KVORUM_SCRIPT").unwrap_or_default();
    let named = |script: Script| {
        (root.join(&script.name), Script { name: format!("{prefix}/{}", script.name), ..script })
    };
    let all = Script::all(&root)?;
    Ok(all.into_iter().map(named).filter(|(path, _)| path.to_string_lossy().contains(&wanted)).collect())
}

/// Plays a script on both; returns what does not hold.
fn compare(path: &Path, script: &Script, ours: &str, redis: &str) -> Result<Vec<String>> {
    let clean = |addr: &str, resp3: bool| -> Result<Clients> {
        // What a script left behind that did not get to its end.
        let mut broom = Plain::open(addr)?;
        for command in ["AUTH secret", "CLIENT UNPAUSE", "CONFIG SET requirepass \"\"", "FLUSHALL"] {
            broom.call(&words(command)?)?;
        }
        Ok(Clients::new(addr, resp3))
    };
    let label = |who: &'static str| move |fault: String| format!("{who}: {fault}");
    let mut faults = Vec::new();
    let played = script.play(&mut clean(redis, false)?, true);
    if std::env::var_os("UPDATE_SCRIPTS").is_some() {
        std::fs::write(path, &played.updated)?;
        eprintln!("{}", played.faults.join("\n"));
        return Ok(faults);
    }
    faults.extend(played.faults.into_iter().map(label("Redis, RESP2")));
    let in_resp2 = script.play(&mut clean(ours, false)?, false).faults;
    faults.extend(in_resp2.iter().cloned().map(label("RESP2")));
    if !script.is_resp2_only() {
        let theirs = script.play(&mut clean(redis, true)?, true);
        let played = script.play(&mut clean(ours, true)?, false);
        faults.extend(played.differences(script, &theirs).into_iter().map(label("RESP3")));
        // What only Kvorum says is in the script alone; the text is the same in both protocols.
        let new: Vec<String> = played.faults.into_iter().filter(|fault| !in_resp2.contains(fault)).collect();
        faults.extend(new.into_iter().map(label("RESP3")));
    }
    Ok(faults)
}

/// Plays all scripts of some folders of the workspace on a server and on a real Redis, in RESP2 and RESP3: what Redis says in RESP2 is what they
/// say, and the server says what Redis says. `KVORUM_SCRIPT=part-of-a-path` plays only some; `UPDATE_SCRIPTS=1` writes what Redis says into them
/// instead.
///
/// # Errors
/// With all that does not hold.
pub fn play_on_both(folders: &[&str], ours: &str, redis: &str) -> Result<()> {
    let (mut played, mut faults) = (0, Vec::new());
    for folder in folders {
        for (path, script) in below(folder)? {
            let held = compare(&path, &script, ours, redis).with_context(|| script.name.clone());
            faults.extend(held.unwrap_or_else(|why| vec![format!("{why:#}")]));
            played += 1;
        }
    }
    eprintln!("{played} scripts, {} faults", faults.len());
    ensure!(faults.is_empty(), "{} faults\n{}", faults.len(), faults.join("\n"));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers with what it is told.
    struct Echo(u64);

    impl Subject for Echo {
        fn call(&mut self, _: &str, argv: &[Vec<u8>]) -> Result<Reply> {
            let mut items: Vec<Reply> = argv[1..].iter().map(|word| Reply::Bulk(word.clone())).collect();
            Ok(match argv[0].as_slice() {
                b"ECHO" => items.remove(0),
                b"CLOCK" => Reply::Int(self.0.try_into()?),
                _ => Reply::Array(items),
            })
        }
        fn sleep(&mut self, ms: u64) {
            self.0 += ms;
        }
    }

    const SCRIPT: &str = "# Shows what holds.\n\n> ECHO \"a b\\x00\"\n\"a b\\x00\"\n@clock +5\n> CLOCK\n(integer) 5\n\
                          @range 4 6\n> CLOCK\n@unordered\n> ALL b a\n1) \"a\"\n2) \"b\"\n@like\n> ECHO abcdef\n\"a*c*f\"\n\
                          @member\n> ECHO b\n\"a\"\n\"b\"\n";

    #[test]
    fn a_script_that_holds_has_no_fault_and_stays_as_it_is() {
        let played = Script::parse("x/y", SCRIPT).unwrap().play(&mut Echo(0), false);
        assert_eq!((played.faults, played.updated.as_str()), (Vec::new(), SCRIPT));
    }

    #[test]
    fn every_kind_of_expectation_can_fail() {
        for (from, to) in [
            ("\"a b\\x00\"\n@clock", "\"a c\"\n@clock"),
            ("(integer) 5", "(integer) 6"),
            ("4 6", "6 7"),
            ("1) \"a\"", "1) \"x\""),
            ("\"a*c*f\"", "\"a*x*f\""),
            ("\"b\"\n", "\"c\"\n"),
        ] {
            let broken = SCRIPT.replace(from, to);
            assert_ne!(broken, SCRIPT);
            let played = Script::parse("x/y", &broken).unwrap().play(&mut Echo(0), false);
            assert!(!played.faults.is_empty(), "{from} -> {to}");
        }
    }

    #[test]
    fn a_line_that_means_nothing_is_refused() {
        for line in ["@clok +5", "OK", "@differs whatever", "> \"open", "@range 1"] {
            assert!(Script::parse("x/y", &format!("# Purpose.\n\n{line}\n")).is_err(), "{line}");
        }
        assert!(Script::parse("x/y", "> GET k\n").is_err());
    }

    #[test]
    fn stars_stand_for_any_text() {
        assert!(
            is_like("a*", "abc")
                && is_like("*c", "abc")
                && is_like("abc", "abc")
                && is_like("a*b*c", "axbxc")
        );
        assert!(!is_like("a*d", "abc") && !is_like("abc", "abcd") && !is_like("ab*bc", "abc"));
    }
}
