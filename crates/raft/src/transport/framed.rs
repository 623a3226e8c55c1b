//! Messages over a bare byte stream, as `peer.proto` lays them out: both ends of the append and the control connection.
//!
//! HTTP/2 would bring windows, priorities and headers, none of which a stream between two servers needs, and a task and a queue on
//! each side of each of its own. Here whoever has a message writes it, if the socket takes it; the connection's one task reads, and writes only
//! what the socket did not take.

use std::{io, sync::Arc, time::Duration};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures::StreamExt;
use kvorum_proto::peer::{Open, Opened, open::Lane};
use parking_lot::Mutex;
use prost::Message;
use rustix::net::Shutdown;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::Notify,
    time::{Instant, MissedTickBehavior},
};
use tokio_util::codec::{FramedRead, LengthDelimitedCodec};

use super::FRAME_BYTES;

/// What a connection begins with; the last byte is the version. HTTP/2 begins with `PRI`.
const MAGIC: [u8; 8] = *b"KVORUM\x00\x01";

/// Largest message, bytes: a frame with its address.
const MESSAGE_BYTES: usize = FRAME_BYTES + (4 << 10);

/// Bytes read at a time, at most.
const READ_BYTES: usize = 64 << 10;

/// Bytes that may wait for the socket before whoever has more waits, too.
const QUEUE_BYTES: usize = 1 << 20;

/// Longest time for the first messages of a connection.
const GREETING_TIMEOUT: Duration = Duration::from_secs(2);

/// When both sides say that they are alive if they have nothing else to say, and after how many such times without a word from the other one
/// the connection is over.
const SIGN_OF_LIFE: Duration = Duration::from_millis(500);
const SILENT_TIMES: u32 = 3;

type Reader = FramedRead<OwnedReadHalf, LengthDelimitedCodec>;

/// A connection whose greetings have been exchanged.
pub(super) struct Connection {
    reader: Reader,
    outbox: Outbox,
}

/// The sending half. Clones share it.
#[derive(Clone)]
pub(super) struct Outbox(Arc<Shared>);

struct Shared {
    socket: OwnedWriteHalf,
    sending: Mutex<Sending>,
    /// The connection's task has something to write, or to end.
    work: Notify,
    room: Notify,
}

#[derive(Default)]
struct Sending {
    waiting: BytesMut,
    /// The socket has taken as much as it can; the connection's task goes on when it takes more.
    full: bool,
    over: bool,
    /// Whether something was sent since the last sign of life.
    spoken: bool,
}

/// Connects a stream to a server: says what is meant, and hears whether that is so.
pub(super) async fn open(mut stream: TcpStream, open: &Open) -> Result<Connection, String> {
    let mut greeting = BytesMut::from(&MAGIC[..]);
    put(open, &mut greeting);
    stream.write_all(&greeting).await.map_err(|error| error.to_string())?;
    let connection = Connection::new(stream);
    let (connection, Opened { refused }) = connection.greeted().await?;
    if refused.is_empty() { Ok(connection) } else { Err(refused) }
}

/// Whether a stream that was accepted is one of these; else it is untouched. An error when it says nothing in time.
pub(super) async fn is_framed(stream: &TcpStream) -> io::Result<bool> {
    let mut first = [0];
    let looking = stream.peek(&mut first);
    let bytes = tokio::time::timeout(GREETING_TIMEOUT, looking).await??;
    Ok(bytes == 1 && first[0] == MAGIC[0])
}

/// Takes the greeting of a stream that [`is_framed`]; `check` may say why it is refused.
pub(super) async fn accept(
    mut stream: TcpStream,
    check: impl FnOnce(&Open) -> Result<(), String>,
) -> Result<(Connection, Open), String> {
    let mut magic = [0; MAGIC.len()];
    let reading = tokio::time::timeout(GREETING_TIMEOUT, stream.read_exact(&mut magic));
    reading.await.map_err(|_| "no greeting".to_owned())?.map_err(|error| error.to_string())?;
    if magic != MAGIC {
        return Err("another version".to_owned());
    }
    let (connection, open) = Connection::new(stream).greeted::<Open>().await?;
    let checked = match open.lane() {
        Lane::Unspecified => Err("neither for appends nor for control".to_owned()),
        _ => check(&open),
    };
    connection.outbox.push(&Opened { refused: checked.clone().err().unwrap_or_default() });
    checked.map(|()| (connection, open))
}

impl Connection {
    fn new(stream: TcpStream) -> Connection {
        let (read, socket) = stream.into_split();
        let codec = LengthDelimitedCodec::builder()
            .length_field_type::<u32>()
            .little_endian()
            .max_frame_length(MESSAGE_BYTES)
            .new_codec();
        let shared = Shared { socket, sending: Mutex::default(), work: Notify::new(), room: Notify::new() };
        Connection {
            reader: FramedRead::with_capacity(read, codec, READ_BYTES),
            outbox: Outbox(Arc::new(shared)),
        }
    }

    /// The first message.
    async fn greeted<M: Message + Default>(mut self) -> Result<(Connection, M), String> {
        match tokio::time::timeout(GREETING_TIMEOUT, self.reader.next()).await {
            Ok(Some(Ok(message))) => {
                let message = M::decode(message).map_err(|error| error.to_string())?;
                Ok((self, message))
            }
            Ok(Some(Err(error))) => Err(error.to_string()),
            Ok(None) => Err("closed by the peer".to_owned()),
            Err(_) => Err("no greeting".to_owned()),
        }
    }

    /// The sending half.
    pub(super) fn outbox(&self) -> Outbox {
        self.outbox.clone()
    }

    /// Hands over what arrives until the connection is over, which it is, too, when `take` says so or when this is dropped. Returns
    /// why.
    pub(super) async fn run(mut self, mut take: impl FnMut(Bytes) -> Result<(), String>) -> String {
        let _ends = Ends(self.outbox.clone());
        let outbox = self.outbox.clone();
        let mut times = tokio::time::interval_at(Instant::now() + SIGN_OF_LIFE, SIGN_OF_LIFE);
        times.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut silent = 0;
        let mut writing = std::pin::pin!(outbox.write_what_waits());
        loop {
            tokio::select! {
                biased;
                message = self.reader.next() => match message {
                    Some(Ok(message)) => {
                        silent = 0;
                        if !message.is_empty()
                            && let Err(reason) = take(message.freeze())
                        {
                            return reason;
                        }
                    }
                    Some(Err(error)) => return error.to_string(),
                    None => return "closed by the peer".to_owned(),
                },
                reason = &mut writing => return reason,
                _ = times.tick() => {
                    silent += 1;
                    if silent > SILENT_TIMES {
                        return "the peer is silent".to_owned();
                    }
                    outbox.say_alive();
                }
            }
        }
    }
}

/// Ends a connection when its task does.
struct Ends(Outbox);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.end();
    }
}

impl Outbox {
    /// Sends a message, or leaves it to the connection's task when the socket is full. `false` when the connection is over.
    pub(super) fn push(&self, message: &impl Message) -> bool {
        let mut sending = self.0.sending.lock();
        put(message, &mut sending.waiting);
        sending.spoken = true;
        self.write(&mut sending);
        !sending.over
    }

    /// Ends when there is room for a message, with `false` when the connection is over.
    pub(super) async fn room(&self) -> bool {
        loop {
            let mut room = std::pin::pin!(self.0.room.notified());
            room.as_mut().enable();
            {
                let sending = self.0.sending.lock();
                if sending.over || sending.waiting.len() < QUEUE_BYTES {
                    return !sending.over;
                }
            }
            room.await;
        }
    }

    /// Whether there is room now.
    pub(super) fn has_room(&self) -> bool {
        self.0.sending.lock().waiting.len() < QUEUE_BYTES
    }

    /// Writes as much as the socket takes.
    fn write(&self, sending: &mut Sending) {
        while !sending.full && !sending.over && !sending.waiting.is_empty() {
            match self.0.socket.try_write(&sending.waiting) {
                Ok(0) => sending.over = true,
                Ok(bytes) => sending.waiting.advance(bytes),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => sending.full = true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => sending.over = true,
            }
        }
        if sending.full || sending.over {
            self.0.work.notify_one();
        } else if sending.waiting.capacity() > QUEUE_BYTES / 4 {
            // What a stall has left.
            sending.waiting = BytesMut::new();
        }
    }

    /// The part of the connection's task that sends. Returns when the connection is over, and may be dropped at any time before.
    async fn write_what_waits(&self) -> String {
        loop {
            let (full, over) = {
                let sending = self.0.sending.lock();
                (sending.full, sending.over)
            };
            if over {
                return "the peer takes nothing".to_owned();
            }
            if !full {
                self.0.work.notified().await;
                continue;
            }
            if let Err(error) = self.0.socket.writable().await {
                return error.to_string();
            }
            let mut sending = self.0.sending.lock();
            sending.full = false;
            self.write(&mut sending);
            if sending.waiting.len() < QUEUE_BYTES {
                self.0.room.notify_waiters();
            }
        }
    }

    fn say_alive(&self) {
        let mut sending = self.0.sending.lock();
        if !std::mem::take(&mut sending.spoken) && sending.waiting.is_empty() {
            sending.waiting.put_u32_le(0);
            self.write(&mut sending);
        }
    }

    fn end(&self) {
        self.0.sending.lock().over = true;
        self.0.room.notify_waiters();
        // The socket closes when the last clone goes. The peer is to hear of it now.
        let _ = rustix::net::shutdown(self.0.socket.as_ref(), Shutdown::Both);
    }
}

/// Appends a message behind its length.
fn put(message: &impl Message, buffer: &mut BytesMut) {
    let bytes = message.encoded_len();
    buffer.reserve(4 + bytes);
    // No message of ours is near 4 GiB; the peer would refuse it.
    buffer.put_u32_le(u32::try_from(bytes).unwrap_or(u32::MAX));
    // Fails only when a buffer cannot grow.
    let _ = message.encode(buffer);
}

#[cfg(test)]
mod tests {
    use kvorum_proto::peer::{Frame, frame::Content};
    use tokio::{net::TcpListener, sync::mpsc};

    use super::*;

    /// Both ends of a connection.
    async fn pair() -> (Connection, Connection) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let greeting = Open { lane: Lane::Append.into(), cluster: "c".to_owned(), from: 1, to: 2 };
        let opening = tokio::spawn(async move { open(stream, &greeting).await });
        let (accepted, _) = listener.accept().await.unwrap();
        assert!(is_framed(&accepted).await.unwrap());
        let (accepted, open) = accept(accepted, |open| {
            assert_eq!((open.cluster.as_str(), open.from, open.to), ("c", 1, 2));
            Ok(())
        })
        .await
        .unwrap();
        assert_eq!(open.lane(), Lane::Append);
        (opening.await.unwrap().unwrap(), accepted)
    }

    fn frame(number: u64, bytes: usize) -> Frame {
        let content = vec![u8::try_from(number % 256).unwrap(); bytes];
        Frame { group: 1, to: 2, stream: 3, request: number, content: Some(Content::Part(content.into())) }
    }

    #[tokio::test]
    async fn messages_arrive_whole_and_in_order_however_slowly_they_are_read() {
        let (from, to) = pair().await;
        let outbox = from.outbox();
        tokio::spawn(from.run(|_| Ok(())));
        let sizes = |number: u64| if number.is_multiple_of(5) { FRAME_BYTES } else { 10 * number as usize };
        let pushing = tokio::spawn(async move {
            for number in 0..500 {
                assert!(outbox.room().await);
                assert!(outbox.push(&frame(number, sizes(number))));
            }
            outbox
        });
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(!pushing.is_finished(), "what nobody reads is kept somewhere");
        let (sender, mut arrived) = mpsc::unbounded_channel();
        tokio::spawn(to.run(move |message| {
            let _ = sender.send(Frame::decode(message).unwrap());
            Ok(())
        }));
        for number in 0..500 {
            assert!(arrived.recv().await.unwrap() == frame(number, sizes(number)), "{number}");
        }
        let outbox = pushing.await.unwrap();
        assert_eq!(outbox.0.sending.lock().waiting.len(), 0);
    }

    #[tokio::test]
    async fn who_waits_for_room_hears_that_the_connection_is_over() {
        let (from, to) = pair().await;
        let outbox = from.outbox();
        let running = tokio::spawn(from.run(|_| Ok(())));
        while outbox.has_room() {
            assert!(outbox.push(&frame(0, FRAME_BYTES)));
        }
        let waiting = tokio::spawn({
            let outbox = outbox.clone();
            async move { outbox.room().await }
        });
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!waiting.is_finished());
        drop(to);
        assert!(!waiting.await.unwrap());
        assert!(!outbox.push(&frame(0, 1)));
        running.await.unwrap();
    }

    #[tokio::test]
    async fn both_sides_say_that_they_are_alive_and_a_silent_one_is_left() {
        let (one, other) = pair().await;
        let mut one = tokio::spawn(one.run(|_| Ok(())));
        let other = tokio::spawn(other.run(|_| Ok(())));
        let long = SIGN_OF_LIFE * (SILENT_TIMES + 2);
        assert!(tokio::time::timeout(long, &mut one).await.is_err(), "nobody was silent");
        other.abort();
        assert!(!one.await.unwrap().is_empty());

        // The socket stays open, and nobody speaks.
        let (one, _other) = pair().await;
        let reason = tokio::time::timeout(long, one.run(|_| Ok(()))).await.unwrap();
        assert_eq!(reason, "the peer is silent");
    }

    #[tokio::test]
    async fn a_message_that_is_too_long_ends_the_connection() {
        let (one, other) = pair().await;
        other.outbox.push(&frame(0, MESSAGE_BYTES));
        let reason = one.run(|_| Ok(())).await;
        assert!(reason.contains("too big") || reason.contains("frame size"), "{reason}");
    }
}
