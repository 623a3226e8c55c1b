//! Bytes in and bytes out, and how many of them may wait.

use super::*;

/// Room made for each read.
pub(super) const READ_BYTES: usize = 16 * 1024;
/// Bytes that may be read ahead while no request is looked at: enough to notice a client that went away.
pub(super) const READ_AHEAD_BYTES: usize = 256 * 1024;
/// The largest request of a client that has not authenticated.
pub(super) const STRANGER_REQUEST_BYTES: u64 = 1024 * 1024;
/// How long a client that is on its way out may take to read its last replies.
pub(super) const GOODBYE_PATIENCE: Duration = Duration::from_secs(5);

impl<E: Engine> Connection<E> {
    pub(super) fn poll_write(&mut self, cx: &mut Context<'_>) -> io::Result<bool> {
        let mut progress = false;
        while self.sent < self.out.bytes().len() {
            let unsent = &self.out.bytes()[self.sent..];
            match Pin::new(&mut self.stream).poll_write(cx, unsent) {
                Poll::Pending => return Ok(progress),
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(written) => {
                    let written = written?;
                    self.sent += written;
                    self.client.meters.written_bytes.fetch_add(written as u64, Ordering::Relaxed);
                    self.client.note_active(Instant::now());
                    let stats = &self.shared.port.stats;
                    stats.output_bytes.fetch_add(written as u64, Ordering::Relaxed);
                    stats.writes.fetch_add(1, Ordering::Relaxed);
                    progress = true;
                }
            }
        }
        if self.sent > 0 {
            self.sent = 0;
            self.out.clear();
        }
        if progress {
            self.note_buffers();
        }
        Ok(progress)
    }

    /// What others see of the buffers.
    pub(super) fn note_buffers(&self) {
        let meters = &self.client.meters;
        let (input, unsent) = (self.decoder.pending_bytes(), self.unsent());
        meters.input_bytes.store(input, Ordering::Relaxed);
        meters.input_free.store(self.decoder.capacity().saturating_sub(input), Ordering::Relaxed);
        meters.output_bytes.store(unsent, Ordering::Relaxed);
        meters.output_capacity.store(self.out.capacity(), Ordering::Relaxed);
        meters.output_peak.fetch_max(unsent, Ordering::Relaxed);
    }

    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>) -> io::Result<bool> {
        let ahead = !self.may_look() && self.decoder.pending_bytes() < READ_AHEAD_BYTES;
        if self.read_closed || self.finishing || !(self.wants_bytes || ahead) {
            return Ok(false);
        }
        let now = Instant::now();
        if self.newcomer.must_wait(now)
            && !(self.stream.poll_read_ready(cx)?.is_ready() && self.newcomer.poll_through(cx).is_ready())
        {
            return Ok(false);
        }
        let buffer = self.decoder.buffer(READ_BYTES);
        let read = pin!(self.stream.read_buf(buffer));
        let Poll::Ready(read) = read.poll(cx) else {
            // Nobody keeps a place without anything to do.
            drop(self.newcomer.take_place());
            return Ok(false);
        };
        let read = read?;
        self.refuse_large_request()?;
        self.read_closed = read == 0;
        self.wants_bytes &= read == 0;
        self.client.meters.read_bytes.fetch_add(read as u64, Ordering::Relaxed);
        self.client.note_active(now);
        self.newcomer.heard(now);
        let stats = &self.shared.port.stats;
        stats.input_bytes.fetch_add(read as u64, Ordering::Relaxed);
        stats.reads.fetch_add(1, Ordering::Relaxed);
        Ok(true)
    }

    /// `client-query-buffer-limit`: Redis closes such a connection without a word, too.
    fn refuse_large_request(&self) -> io::Result<()> {
        let port = &self.shared.port;
        let mut limit = port.settings.query_buffer_limit.load(Ordering::Relaxed);
        if self.session.lacks_password(port) {
            limit = limit.min(STRANGER_REQUEST_BYTES);
        }
        if self.decoder.cost() as u64 <= limit {
            return Ok(());
        }
        port.stats.query_limit_disconnections.fetch_add(1, Ordering::Relaxed);
        let client = self.client.describe(Instant::now());
        warn!(%client, "a client sent more than a request may be and is disconnected");
        Err(io::ErrorKind::InvalidData.into())
    }

    pub(super) async fn say_goodbye(&mut self) -> io::Result<()> {
        let written = poll_fn(|cx| {
            let _ = self.poll_write(cx)?;
            if self.out.bytes().is_empty() { Poll::Ready(io::Result::Ok(())) } else { Poll::Pending }
        });
        tokio::time::timeout(GOODBYE_PATIENCE, written).await??;
        self.stream.shutdown().await
    }
}
