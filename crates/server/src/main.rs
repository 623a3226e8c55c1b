//! The `kvorum` program: command line and configuration in front of the server library.

mod cli;
mod config;

use std::process::ExitCode;

/// Small, short-lived values of many sizes on many threads: what mimalloc is good at.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    cli::run()
}
