//! The server in front of the database: listeners, connections, sessions, RESP.

mod resp;
