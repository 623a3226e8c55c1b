//! A small client for the client ports: RESP2, one command at a time, for the commands of this program.

use anyhow::{Context, Result, bail, ensure};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// Replies larger than this are no answer to anything asked here.
const MAX_REPLY_BYTES: usize = 256 << 20;

/// A connection to a port.
pub(crate) struct RespClient(BufReader<TcpStream>);

/// A reply, as far as it is of interest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Reply {
    /// A string, or a number as it is written.
    Text(String),
    /// An error.
    Error(String),
    /// Nothing.
    Null,
    /// Several replies.
    Array(Vec<Reply>),
}

impl RespClient {
    /// Connects, and gives the password if there is one.
    pub(crate) async fn connect(address: &str, password: Option<&str>) -> Result<RespClient> {
        let stream = TcpStream::connect(address).await.context("connecting")?;
        let mut client = RespClient(BufReader::new(stream));
        if let Some(password) = password {
            client.text(&["AUTH", password]).await?;
        }
        Ok(client)
    }

    /// Sends a command whose answer is text; an error is an error.
    pub(crate) async fn text(&mut self, command: &[&str]) -> Result<String> {
        match self.ask(command).await? {
            Reply::Text(text) => Ok(text),
            Reply::Error(error) => bail!("{} is answered with {error}", command[0]),
            other => bail!("{} is answered with {other:?}", command[0]),
        }
    }

    /// Sends a command.
    pub(crate) async fn ask(&mut self, command: &[&str]) -> Result<Reply> {
        let mut request = format!("*{}\r\n", command.len());
        for word in command {
            request += &format!("${}\r\n{word}\r\n", word.len());
        }
        self.0.get_mut().write_all(request.as_bytes()).await.context("sending")?;
        self.reply().await
    }

    async fn reply(&mut self) -> Result<Reply> {
        let line = self.line().await?;
        let mut reply = match self.simple(&line).await? {
            Some(reply) => return Ok(reply),
            None => Vec::new(),
        };
        // Nobody asked here is answered with arrays within arrays.
        for _ in 0..length(&line)?.unwrap_or(0) {
            let line = self.line().await?;
            reply.push(self.simple(&line).await?.context("an array within an array")?);
        }
        Ok(Reply::Array(reply))
    }

    /// The reply that begins with this line; `None` when it is an array.
    async fn simple(&mut self, line: &str) -> Result<Option<Reply>> {
        let rest = line.get(1..).unwrap_or_default().to_owned();
        Ok(Some(match line.as_bytes().first() {
            Some(b'+' | b':') => Reply::Text(rest),
            Some(b'-') => Reply::Error(rest),
            Some(b'$') => match length(line)? {
                None => Reply::Null,
                Some(bytes) => {
                    let mut text = vec![0; bytes + 2];
                    self.0.read_exact(&mut text).await.context("reading")?;
                    text.truncate(bytes);
                    Reply::Text(String::from_utf8_lossy(&text).into_owned())
                }
            },
            Some(b'*') => return Ok(None),
            _ => bail!("{line:?} is no reply"),
        }))
    }

    async fn line(&mut self) -> Result<String> {
        let mut line = Vec::new();
        let read = (&mut self.0).take(64 * 1024).read_until(b'\n', &mut line).await.context("reading")?;
        ensure!(read > 0, "closed without an answer");
        Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
    }
}

fn length(line: &str) -> Result<Option<usize>> {
    let number: i64 = line.get(1..).unwrap_or_default().parse().context("a reply without a length")?;
    let Ok(length) = usize::try_from(number) else { return Ok(None) };
    ensure!(length <= MAX_REPLY_BYTES, "a reply of {length} bytes is too large");
    Ok(Some(length))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    /// What a client reads of these bytes.
    async fn read(bytes: &'static [u8]) -> Result<Reply> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?.to_string();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await?;
            stream.write_all(bytes).await?;
            // All that was asked is read, so that nothing is lost to a reset.
            let mut asked = [0; 14];
            stream.read_exact(&mut asked).await.map(|_| asked)
        });
        let reply = RespClient::connect(&address, None).await?.ask(&["PING"]).await;
        assert_eq!(&server.await??, b"*1\r\n$4\r\nPING\r\n");
        reply
    }

    #[tokio::test]
    async fn replies_are_read_and_nonsense_is_an_error() {
        let text = |text: &str| Reply::Text(text.to_owned());
        assert_eq!(read(b"+PONG\r\n").await.unwrap(), text("PONG"));
        assert_eq!(read(b":7\r\n").await.unwrap(), text("7"));
        assert_eq!(read(b"$4\r\na\r\nb\r\n").await.unwrap(), text("a\r\nb"));
        assert_eq!(read(b"$-1\r\n").await.unwrap(), Reply::Null);
        assert_eq!(read(b"-NOAUTH x\r\n").await.unwrap(), Reply::Error("NOAUTH x".to_owned()));
        assert_eq!(read(b"*2\r\n$1\r\na\r\n:1\r\n").await.unwrap(), Reply::Array(vec![text("a"), text("1")]));
        for nonsense in [
            &b""[..],
            b"HTTP/1.1 200\r\n",
            b"$x\r\n",
            b"$999999999999\r\n",
            b"*1\r\n*1\r\n:1\r\n",
            b"$9\r\nab",
        ] {
            assert!(read(nonsense).await.is_err(), "{nonsense:?}");
        }
    }
}
