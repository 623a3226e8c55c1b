//! The command line: `kvorum dev`, `kvorum server`, `kvorum cluster`, `kvorum clients`, `kvorum healthcheck`.
//!
//! Each command is a module with its arguments and a `run`. What a command has to say goes to standard output,
//! errors go to standard error as one line that starts with `kvorum: `; the exit code is 0 when the command did
//! what it was asked to, 1 when it did not, 2 when it was not understood.

mod children;
mod clients;
mod cluster;
mod dev;
mod events;
mod healthcheck;
mod lock;
mod logging;
mod plan;
mod ports;
mod resp;
mod server;
mod signals;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Kvorum: a clustered, replicated, Redis-compatible key-value store. An acknowledged write is never lost.
#[derive(Debug, Parser)]
#[command(name = "kvorum", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a whole cluster on this machine, for development and for looking around
    Dev(dev::Args),
    /// Run one server
    Server(Box<server::Args>),
    /// Create a cluster of running servers, or see how it is
    #[command(subcommand)]
    Cluster(cluster::Command),
    /// Show who is connected to a cluster, and who seems to leak connections
    Clients(clients::Args),
    /// Ask the server on this machine whether it works; for container engines and init systems
    Healthcheck(healthcheck::Args),
}

/// Runs the command that the process was started with.
pub(crate) fn run() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Dev(args) => dev::run(args),
        Command::Server(args) => server::run(*args),
        Command::Cluster(command) => cluster::run(command),
        Command::Clients(args) => clients::run(&args),
        Command::Healthcheck(args) => healthcheck::run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kvorum: {error:#}");
            ExitCode::FAILURE
        }
    }
}
