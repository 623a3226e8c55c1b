//! Who asked what when, and what came back.
//!
//! Times are nanoseconds of one monotonic clock of this process: an operation is recorded from just before it is
//! sent to just after its outcome is known, so two operations overlap here whenever they did in truth.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;

/// What a register operation does. Values of one key are written once each.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Action {
    /// Read the register; its [`Ending`] holds the result.
    Read,
    /// Write this value.
    Write(u64),
}

/// How an operation ended.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Ending {
    /// It ran; a read returned this (`None`: no such key), a write returns `None`.
    Ok(Option<u64>),
    /// It certainly did not run.
    Fail,
    /// Nobody knows; it may still take effect at any later time.
    Info,
}

/// One operation of one client on one key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Operation {
    /// The client.
    pub client: u32,
    /// The register.
    pub key: u64,
    /// What was asked.
    pub action: Action,
    /// When it was sent.
    pub start_ns: u64,
    /// When the outcome was known.
    pub end_ns: u64,
    /// The outcome.
    pub ending: Ending,
}

/// Records operations of many tasks.
#[derive(Clone, Debug)]
pub struct Recorder {
    origin: Instant,
    operations: Arc<Mutex<Vec<Operation>>>,
}

impl Default for Recorder {
    fn default() -> Recorder {
        Recorder { origin: Instant::now(), operations: Arc::default() }
    }
}

impl Recorder {
    /// Nanoseconds since the recorder was made.
    pub fn now_ns(&self) -> u64 {
        self.origin.elapsed().as_nanos() as u64
    }

    /// Records an operation that started at `start_ns` and ends now.
    pub fn record(&self, client: u32, key: u64, action: Action, start_ns: u64, ending: Ending) {
        let end_ns = self.now_ns();
        self.operations.lock().push(Operation { client, key, action, start_ns, end_ns, ending });
    }

    /// How many operations have ended so far.
    pub fn len(&self) -> usize {
        self.operations.lock().len()
    }

    /// Whether none has ended yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What was recorded so far, by start.
    pub fn history(&self) -> Vec<Operation> {
        let mut history = self.operations.lock().clone();
        history.sort_by_key(|operation| operation.start_ns);
        history
    }
}

/// The history as Jepsen writes it (EDN, one map a line), for checkers nobody here wrote, such as Knossos.
pub fn to_edn(history: &[Operation]) -> String {
    let mut events: Vec<(u64, bool, &Operation)> = Vec::with_capacity(2 * history.len());
    for operation in history {
        events.push((operation.start_ns, false, operation));
        events.push((operation.end_ns, true, operation));
    }
    events.sort_by_key(|(time, ends, operation)| (*time, *ends, operation.client));
    let mut edn = String::new();
    for (index, (time, ends, operation)) in events.into_iter().enumerate() {
        let f = match operation.action {
            Action::Read => "read",
            Action::Write(_) => "write",
        };
        let kind = match (ends, operation.ending) {
            (false, _) => "invoke",
            (true, Ending::Ok(_)) => "ok",
            (true, Ending::Fail) => "fail",
            (true, Ending::Info) => "info",
        };
        let value = match (operation.action, operation.ending) {
            (Action::Write(value), _) => value.to_string(),
            (Action::Read, Ending::Ok(Some(value))) if ends => value.to_string(),
            (Action::Read, _) => "nil".to_owned(),
        };
        let _ = writeln!(
            edn,
            "{{:index {index}, :time {time}, :process {}, :type :{kind}, :f :{f}, :value [{} {value}]}}",
            operation.client, operation.key
        );
    }
    edn
}

/// Writes the history to `path`, so that a failure can be looked at.
///
/// # Errors
/// What the system says.
pub fn save(history: &[Operation], path: &Path) -> std::io::Result<()> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    std::fs::write(path, to_edn(history))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edn_has_an_invocation_and_an_end_for_each_operation_in_time() {
        let history = [
            Operation {
                client: 1,
                key: 7,
                action: Action::Write(3),
                start_ns: 10,
                end_ns: 40,
                ending: Ending::Info,
            },
            Operation {
                client: 2,
                key: 7,
                action: Action::Read,
                start_ns: 20,
                end_ns: 30,
                ending: Ending::Ok(None),
            },
        ];
        assert_eq!(
            to_edn(&history),
            "{:index 0, :time 10, :process 1, :type :invoke, :f :write, :value [7 3]}\n\
             {:index 1, :time 20, :process 2, :type :invoke, :f :read, :value [7 nil]}\n\
             {:index 2, :time 30, :process 2, :type :ok, :f :read, :value [7 nil]}\n\
             {:index 3, :time 40, :process 1, :type :info, :f :write, :value [7 3]}\n"
        );
    }
}
