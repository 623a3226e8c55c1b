//! Log lines of a server: to standard error, for people or as JSON.

use std::io::{IsTerminal, stderr};

use anyhow::{Result, anyhow};

use crate::config::{Config, LogFormat, log_filter};

/// Installs the process-wide subscriber that `config` describes.
pub(crate) fn start(config: &Config) -> Result<()> {
    let filter = log_filter(&config.log_level).map_err(|why| anyhow!("log-level: {why}"))?;
    // When nobody reads standard error any more, a line is lost; complaining there as well would panic.
    let lines =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(stderr).log_internal_errors(false);
    let installed = match config.log_format {
        LogFormat::Human => {
            let colored = stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            lines.with_ansi(colored).with_target(false).compact().try_init()
        }
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    };
    installed.map_err(|e| anyhow!("starting the log: {e}"))
}
