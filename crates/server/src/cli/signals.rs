//! The signals that ask a process to stop: SIGINT and SIGTERM.
//!
//! SIGHUP is left to the system: it ends a process whose terminal was closed, unless `nohup` says otherwise.

use anyhow::{Context, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Catches the signals from its creation on.
#[derive(Debug)]
pub(crate) struct StopSignals {
    interrupt: Signal,
    terminate: Signal,
}

impl StopSignals {
    /// Starts to catch the signals; must be called on a tokio runtime.
    pub(crate) fn new() -> Result<StopSignals> {
        let catch = |kind| signal(kind).context("catching signals");
        Ok(StopSignals {
            interrupt: catch(SignalKind::interrupt())?,
            terminate: catch(SignalKind::terminate())?,
        })
    }

    /// Waits for the next of them. Cancel-safe.
    pub(crate) async fn received(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
