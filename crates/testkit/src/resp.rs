//! One connection that speaks RESP: requests out, in order; replies in, in order.
//!
//! Decoding is redis-protocol's, so a reply that is not well-formed is an error here and not a surprise later. There are no retries and no
//! routing; see [`crate::client`] for those.

use std::fmt;
use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use redis_protocol::{resp2, resp3};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A reply.
#[derive(Clone, PartialEq, Debug)]
pub enum Value {
    /// A status line such as `OK`.
    Status(String),
    /// An error, code first, without the `-`.
    Error(String),
    /// An integer.
    Integer(i64),
    /// A bulk string (or a verbatim string, without its format).
    Bulk(Bytes),
    /// The null of either protocol.
    Null,
    /// An array (or a set or a push).
    Array(Vec<Value>),
    /// A map of RESP3, in no particular order.
    Map(Vec<(Value, Value)>),
    /// A boolean of RESP3.
    Boolean(bool),
    /// A double of RESP3.
    Double(f64),
}

impl Value {
    /// A bulk string.
    pub fn bulk(text: impl AsRef<[u8]>) -> Value {
        Value::Bulk(Bytes::copy_from_slice(text.as_ref()))
    }

    /// The status `OK`.
    pub fn ok() -> Value {
        Value::Status("OK".to_owned())
    }

    /// The text of a status, error or bulk string; lossy where it is not UTF-8.
    pub fn text(&self) -> Option<String> {
        match self {
            Value::Status(text) | Value::Error(text) => Some(text.clone()),
            Value::Bulk(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
            _ => None,
        }
    }

    /// The error, if it is one.
    pub fn error(&self) -> Option<&str> {
        match self {
            Value::Error(text) => Some(text),
            _ => None,
        }
    }

    /// The integer, if it is one.
    pub fn integer(&self) -> Option<i64> {
        match self {
            Value::Integer(n) => Some(*n),
            _ => None,
        }
    }

    /// The elements, if it is an array.
    pub fn items(&self) -> Option<&[Value]> {
        match self {
            Value::Array(items) => Some(items),
            _ => None,
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Status(text) => write!(f, "{text}"),
            Value::Error(text) => write!(f, "(error) {text}"),
            Value::Integer(n) => write!(f, "(integer) {n}"),
            Value::Bulk(bytes) => write!(f, "\"{}\"", bytes.escape_ascii()),
            Value::Null => write!(f, "(nil)"),
            Value::Boolean(b) => write!(f, "({b})"),
            Value::Double(d) => write!(f, "(double) {d}"),
            Value::Array(items) => {
                let items: Vec<String> = items.iter().map(Value::to_string).collect();
                write!(f, "[{}]", items.join(", "))
            }
            Value::Map(items) => {
                let items: Vec<String> = items.iter().map(|(k, v)| format!("{k}: {v}")).collect();
                write!(f, "{{{}}}", items.join(", "))
            }
        }
    }
}

/// A connection to one port.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    received: BytesMut,
    resp3: bool,
}

impl Connection {
    /// Connects to `host:port`, within five seconds.
    ///
    /// # Errors
    /// What the system says, or `TimedOut`.
    pub async fn open(addr: &str) -> io::Result<Connection> {
        let stream = within(Duration::from_secs(5), TcpStream::connect(addr)).await?;
        stream.set_nodelay(true)?;
        Ok(Connection { stream, received: BytesMut::new(), resp3: false })
    }

    /// Sends a request.
    ///
    /// # Errors
    /// When the connection is broken; the request may have arrived all the same.
    pub async fn send<A: AsRef<[u8]>>(&mut self, argv: &[A]) -> io::Result<()> {
        self.stream.write_all(&encode(argv)).await
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// When the connection is broken.
    pub async fn send_raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await
    }

    /// Waits for the next reply.
    ///
    /// # Errors
    /// `UnexpectedEof` when the server closed the connection, `InvalidData` when it sent what is no RESP.
    pub async fn receive(&mut self) -> io::Result<Value> {
        loop {
            if let Some(value) = self.decode()? {
                return Ok(value);
            }
            if self.stream.read_buf(&mut self.received).await? == 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed the connection"));
            }
        }
    }

    /// Sends a request and waits for its reply.
    ///
    /// # Errors
    /// As [`Connection::send`] and [`Connection::receive`].
    pub async fn call<A: AsRef<[u8]>>(&mut self, argv: &[A]) -> io::Result<Value> {
        self.send(argv).await?;
        self.receive().await
    }

    /// As [`Connection::call`], with an end.
    ///
    /// # Errors
    /// Also `TimedOut`; the connection is of no use then, for the reply may still come.
    pub async fn call_within<A: AsRef<[u8]>>(&mut self, limit: Duration, argv: &[A]) -> io::Result<Value> {
        within(limit, self.call(argv)).await
    }

    /// Sends all requests without waiting, and reads all replies meanwhile.
    ///
    /// # Errors
    /// As [`Connection::call`]; the replies that came are lost then.
    pub async fn pipeline(&mut self, requests: &[Vec<Bytes>]) -> io::Result<Vec<Value>> {
        let bytes: Vec<u8> = requests.iter().flat_map(|argv| encode(argv)).collect();
        let mut sent = 0;
        let mut replies = Vec::with_capacity(requests.len());
        loop {
            while let Some(value) = self.decode()? {
                replies.push(value);
            }
            if replies.len() >= requests.len() && sent == bytes.len() {
                return Ok(replies);
            }
            let (mut input, mut output) = self.stream.split();
            tokio::select! {
                written = output.write(&bytes[sent..]), if sent < bytes.len() => sent += written?,
                read = input.read_buf(&mut self.received) => {
                    if read? == 0 {
                        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed the connection"));
                    }
                }
            }
        }
    }

    /// Whether the server has closed the connection already, or sent what nobody asked for: then nothing should be
    /// sent any more, and not having sent it is certain.
    pub fn is_spent(&self) -> bool {
        let mut byte = [0];
        match self.stream.try_read(&mut byte) {
            Ok(_) => true,
            Err(e) => e.kind() != io::ErrorKind::WouldBlock,
        }
    }

    /// `HELLO 3`: replies are RESP3 from now on.
    ///
    /// # Errors
    /// As [`Connection::call`].
    pub async fn hello3(&mut self) -> io::Result<Value> {
        self.send(&["HELLO", "3"]).await?;
        self.resp3 = true;
        self.receive().await
    }

    fn decode(&mut self) -> io::Result<Option<Value>> {
        if self.received.is_empty() {
            return Ok(None);
        }
        let bad = |e: redis_protocol::error::RedisProtocolError| {
            io::Error::new(io::ErrorKind::InvalidData, format!("no RESP: {e}"))
        };
        // The decoder wants shared bytes. Freezing and thawing moves no data while nothing else refers to them.
        let shared = self.received.split().freeze();
        let decoded = if self.resp3 {
            resp3::decode::complete::decode_bytes(&shared)
                .map_err(bad)?
                .map(|(frame, n)| (from_resp3(frame), n))
        } else {
            resp2::decode::decode_bytes(&shared).map_err(bad)?.map(|(frame, n)| (from_resp2(frame), n))
        };
        let (value, used) = match decoded {
            Some((value, used)) => (Some(value), used),
            None => (None, 0),
        };
        let rest = shared.slice(used..);
        drop(shared);
        self.received = rest.try_into_mut().unwrap_or_else(|rest| BytesMut::from(&rest[..]));
        Ok(value)
    }
}

async fn within<T>(limit: Duration, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    match tokio::time::timeout(limit, work).await {
        Ok(result) => result,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {limit:?}"))),
    }
}

/// A request as an array of bulk strings.
pub fn encode<A: AsRef<[u8]>>(argv: &[A]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", argv.len()).into_bytes();
    for arg in argv {
        let arg = arg.as_ref();
        bytes.extend_from_slice(format!("${}\r\n", arg.len()).as_bytes());
        bytes.extend_from_slice(arg);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

/// The arguments of a request written as words.
pub fn words(line: &str) -> Vec<Bytes> {
    line.split_ascii_whitespace().map(|word| Bytes::copy_from_slice(word.as_bytes())).collect()
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

// Bulk strings are copied out, so that a long-lived reply does not keep a whole read buffer alive.
fn from_resp2(frame: resp2::types::BytesFrame) -> Value {
    use resp2::types::BytesFrame as F;
    match frame {
        F::SimpleString(text) => Value::Status(lossy(&text)),
        F::Error(text) => Value::Error(text.to_string()),
        F::Integer(n) => Value::Integer(n),
        F::BulkString(bytes) => Value::bulk(bytes),
        F::Array(items) => Value::Array(items.into_iter().map(from_resp2).collect()),
        F::Null => Value::Null,
    }
}

fn from_resp3(frame: resp3::types::BytesFrame) -> Value {
    use resp3::types::BytesFrame as F;
    match frame {
        F::SimpleString { data, .. } => Value::Status(lossy(&data)),
        F::SimpleError { data, .. } => Value::Error(data.to_string()),
        F::BlobError { data, .. } => Value::Error(lossy(&data)),
        F::BlobString { data, .. } | F::BigNumber { data, .. } | F::VerbatimString { data, .. } => {
            Value::bulk(data)
        }
        F::Boolean { data, .. } => Value::Boolean(data),
        F::Number { data, .. } => Value::Integer(data),
        F::Double { data, .. } => Value::Double(data),
        F::Array { data, .. } | F::Push { data, .. } => {
            Value::Array(data.into_iter().map(from_resp3).collect())
        }
        F::Set { data, .. } => Value::Array(data.into_iter().map(from_resp3).collect()),
        F::Map { data, .. } => {
            Value::Map(data.into_iter().map(|(k, v)| (from_resp3(k), from_resp3(v))).collect())
        }
        F::Null | F::Hello { .. } | F::ChunkedString(_) => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    async fn served(bytes: &'static [u8], chunk: usize) -> Connection {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            for piece in bytes.chunks(chunk) {
                socket.write_all(piece).await.unwrap();
                socket.flush().await.unwrap();
                tokio::task::yield_now().await;
            }
        });
        Connection::open(&addr).await.unwrap()
    }

    #[tokio::test]
    async fn replies_are_read_in_order_however_they_are_cut() {
        let bytes = b"+OK\r\n-ERR no\r\n:7\r\n$5\r\na\r\nbc\r\n$-1\r\n*2\r\n:1\r\n$0\r\n\r\n";
        for chunk in [1, 3, 1000] {
            let mut connection = served(bytes, chunk).await;
            let expected = [
                Value::ok(),
                Value::Error("ERR no".to_owned()),
                Value::Integer(7),
                Value::bulk("a\r\nbc"),
                Value::Null,
                Value::Array(vec![Value::Integer(1), Value::bulk("")]),
            ];
            for value in expected {
                assert_eq!(connection.receive().await.unwrap(), value, "in chunks of {chunk}");
            }
            assert_eq!(connection.receive().await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        }
    }

    #[tokio::test]
    async fn what_is_no_resp_is_an_error() {
        let mut connection = served(b"HTTP/1.1 400 Bad Request\r\n\r\n", 1000).await;
        assert_eq!(connection.receive().await.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
