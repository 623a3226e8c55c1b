//! The process, as far as clients have a say in it: SHUTDOWN.

use std::sync::Arc;
use tokio::sync::watch;

/// Carries a client's wish to stop the process to whoever runs it. Clones are the same.
#[derive(Clone, Debug)]
pub struct Control(Arc<watch::Sender<State>>);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Serving,
    /// A client wants the process to stop, and may still think better of it.
    Asked,
    /// There is no way back.
    Stopping,
}

impl Default for Control {
    fn default() -> Control {
        Control(Arc::new(watch::Sender::new(State::Serving)))
    }
}

impl Control {
    /// A client wants the process to stop.
    pub(crate) fn ask(&self) {
        self.0.send_if_modified(|state| {
            let news = *state == State::Serving;
            if news {
                *state = State::Asked;
            }
            news
        });
    }

    /// A client thinks better of it; `false` when nobody wants to stop, or it is too late.
    pub(crate) fn withdraw(&self) -> bool {
        self.0.send_if_modified(|state| {
            let asked = *state == State::Asked;
            if asked {
                *state = State::Serving;
            }
            asked
        })
    }

    /// Whether a client wants the process to stop.
    pub fn is_asked(&self) -> bool {
        *self.0.borrow() == State::Asked
    }

    /// From now on nobody can call it off.
    pub fn commit(&self) {
        self.0.send_replace(State::Stopping);
    }

    /// Resolves when a client wants the process to stop.
    pub async fn asked(&self) {
        self.wait_for(State::Asked).await;
    }

    /// Resolves when nobody wants that any more.
    pub async fn withdrawn(&self) {
        self.wait_for(State::Serving).await;
    }

    async fn wait_for(&self, wanted: State) {
        // The sender lives as long as we do.
        let _ = self.0.subscribe().wait_for(|state| *state == wanted).await;
    }
}
