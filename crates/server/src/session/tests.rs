//! Conversations of real clients with a session, without sockets.
