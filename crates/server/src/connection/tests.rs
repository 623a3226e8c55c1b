//! Connections over real sockets and a scripted replica.
