//! What the tests of this crate share: commands as batches, and replies as text.

use crate::{Batch, ReplySink};
use kvorum_keyspace::{Sink, Slot, lookup};

/// One command, its words with blanks between them.
pub(crate) fn batch(line: &str) -> Batch {
    let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
    let mut batch = Batch::new();
    batch.push(lookup(words[0]).unwrap(), 0, words.into_iter());
    batch
}

/// Replies one behind the other; what is no text leaves none.
#[derive(Default)]
pub(crate) struct Text(pub(crate) String);

impl Sink for Text {
    fn simple(&mut self, text: &str) {
        self.0.push_str(text);
    }
    fn error(&mut self, text: &[u8]) {
        self.0.push_str(&String::from_utf8_lossy(text));
    }
    fn int(&mut self, value: i64) {
        self.0.push_str(&value.to_string());
    }
    fn bulk(&mut self, bytes: &[u8]) {
        self.0.push_str(&String::from_utf8_lossy(bytes));
    }
    fn null(&mut self) {}
    fn null_array(&mut self) {}
    fn array(&mut self, _: usize) {}
    fn map(&mut self, _: usize) {}
    fn set(&mut self, _: usize) {}
    fn double(&mut self, _: f64) {}
    fn boolean(&mut self, _: bool) {}
    fn verbatim(&mut self, _: &str, _: &[u8]) {}
}

impl ReplySink for Text {
    fn not_served(&mut self, _: Slot) {}
    fn mark(&self) -> usize {
        self.0.len()
    }
    fn rewind(&mut self, mark: usize) {
        self.0.truncate(mark);
    }
}
