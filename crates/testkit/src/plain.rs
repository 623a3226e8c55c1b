//! A blocking connection that hides nothing: bytes out, exact replies in.
//!
//! For tests that compare two servers letter by letter; [`crate::resp::Connection`] is for those that do many things at once.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use crate::reply::Reply;
use crate::resp::encode;

/// How long it waits for a reply.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// A connection.
#[derive(Debug)]
pub struct Plain {
    stream: TcpStream,
    received: Vec<u8>,
    /// What of `received` was given away already.
    used: usize,
}

impl Plain {
    /// Connects to `host:port`.
    ///
    /// # Errors
    /// What the system says.
    pub fn open(addr: impl ToSocketAddrs) -> io::Result<Plain> {
        let stream = TcpStream::connect(addr)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Plain { stream, received: Vec::new(), used: 0 })
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// When the connection is broken.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// The next reply.
    ///
    /// # Errors
    /// `UnexpectedEof` when the server closed the connection, `InvalidData` when it sent what is no RESP, `WouldBlock` when
    /// nothing came within [`PATIENCE`].
    pub fn receive(&mut self) -> io::Result<Reply> {
        let mut chunk = vec![0; 64 * 1024];
        loop {
            let parsed = Reply::parse(&self.received[self.used..])
                .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
            if let Some((reply, length)) = parsed {
                self.used += length;
                if self.used == self.received.len() {
                    self.received.clear();
                    self.used = 0;
                }
                return Ok(reply);
            }
            let n = self.stream.read(&mut chunk)?;
            if n == 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed the connection"));
            }
            self.received.extend_from_slice(&chunk[..n]);
        }
    }

    /// Sends a request and waits for its reply.
    ///
    /// # Errors
    /// As [`Plain::send`] and [`Plain::receive`].
    pub fn call<A: AsRef<[u8]>>(&mut self, argv: &[A]) -> io::Result<Reply> {
        self.send(&encode(argv))?;
        self.receive()
    }

    /// As [`Plain::receive`], or `None` when nothing came within `limit`.
    ///
    /// # Errors
    /// As [`Plain::receive`].
    pub fn receive_within(&mut self, limit: Duration) -> io::Result<Option<Reply>> {
        self.stream.set_read_timeout(Some(limit))?;
        let received = self.receive();
        self.stream.set_read_timeout(Some(PATIENCE))?;
        match received {
            Ok(reply) => Ok(Some(reply)),
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Nothing is left that was received and not asked for; nor does anything come within `limit`.
    ///
    /// # Errors
    /// When the connection is broken.
    pub fn is_silent(&mut self, limit: Duration) -> io::Result<bool> {
        Ok(self.receive_within(limit)?.is_none() && self.received.len() == self.used)
    }
}
