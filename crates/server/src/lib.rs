//! The server in front of the database: listeners, connections, sessions, RESP.

mod clients;
mod port;
mod resp;
mod session;
mod settings;
mod stats;
