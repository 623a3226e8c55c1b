//! The bytes of a segment's records, in chunks.
//!
//! Records come and stay where they are until all are laid out anew: nothing is moved when more come, but for the last
//! chunk, which doubles from [`LEAST`] to its limit. So nearly all blocks of all segments have one size, and what one gives
//! back fits another: one buffer per segment passed through every size of the allocator, and left pages behind that a few
//! blocks held.
//!
//! A record lies in one chunk. The limit is [`USUAL`], more where records are so long that ends of chunks would be a waste.

use smallvec::SmallVec;

/// Where a record lies: number of the chunk, and offset in it.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Place([u8; 3]);

/// Bits of a place that are the offset.
const OFFSET_BITS: u32 = 11;
/// Longest chunk, bytes.
const MOST: usize = 1 << OFFSET_BITS;
/// Limit of chunks of short records, bytes.
const USUAL: usize = 512;
/// Shortest chunk, bytes.
const LEAST: usize = 64;
/// Chunks of which a segment knows without another allocation.
const INLINE: usize = 6;
/// Holes below this many bytes are not worth a new layout.
const WORTHWHILE: usize = 128;

impl Place {
    fn new(chunk: usize, offset: usize) -> Place {
        let place = (chunk << OFFSET_BITS | offset) as u32;
        let [a, b, c, 0] = place.to_le_bytes() else {
            panic!("a segment has 256 records, but for those of equal hashes");
        };
        Place([a, b, c])
    }

    fn parts(self) -> (usize, usize) {
        let [a, b, c] = self.0;
        let place = u32::from_le_bytes([a, b, c, 0]) as usize;
        (place >> OFFSET_BITS, place & (MOST - 1))
    }
}

#[derive(Clone, Default, Debug)]
pub(super) struct Chunks {
    chunks: SmallVec<[Box<[u8]>; INLINE]>,
    /// Bytes taken of the last chunk.
    end: u16,
    /// Bytes that belong to no record any more.
    holes: u32,
}

impl Chunks {
    /// Room for a record of `size` bytes, with any content; `coming` bytes, these included, are known to be needed.
    pub(super) fn allocate(&mut self, size: usize, coming: usize) -> Place {
        let limit = (4 * size).next_power_of_two().clamp(USUAL, MOST);
        let end = usize::from(self.end);
        let wanted = |end: usize| (end + coming.max(size)).next_power_of_two().clamp(LEAST, limit);
        match self.chunks.last_mut() {
            Some(last) if end + size <= last.len() => {}
            Some(last) if end + size <= limit => resize(last, wanted(end)),
            _ => {
                // Not twice as many, as a vector would: there are a few of them, and then long no more.
                if self.chunks.len() >= INLINE && self.chunks.len() == self.chunks.capacity() {
                    self.chunks.reserve_exact(4);
                }
                self.chunks.push(vec![0; wanted(0)].into_boxed_slice());
                self.end = 0;
            }
        }
        let at = usize::from(self.end);
        self.end = (at + size) as u16;
        Place::new(self.chunks.len() - 1, at)
    }

    /// Gives back the bytes of a record.
    pub(super) fn release(&mut self, place: Place, size: usize) {
        let (chunk, offset) = place.parts();
        if chunk + 1 == self.chunks.len() && offset + size == usize::from(self.end) {
            self.end = offset as u16;
        } else {
            self.holes += size as u32;
        }
    }

    /// Whether the holes are a fifth of all, so that a new layout moves each byte a bounded number of times.
    pub(super) fn is_wasteful(&self) -> bool {
        let holes = self.holes as usize;
        holes >= WORTHWHILE && holes * 5 >= self.bytes()
    }

    /// The bytes from a record's first on.
    pub(super) fn at(&self, place: Place) -> &[u8] {
        let (chunk, offset) = place.parts();
        &self.chunks[chunk][offset..]
    }

    /// The same, to be written.
    pub(super) fn at_mut(&mut self, place: Place) -> &mut [u8] {
        let (chunk, offset) = place.parts();
        &mut self.chunks[chunk][offset..]
    }

    /// Reads a little of everything. Who is about to walk through it waits for memory once then, not chunk by chunk.
    pub(super) fn fetch(&self) {
        const CACHE_LINE: usize = 64;
        let bytes = self.chunks.iter().flat_map(|chunk| chunk.iter().step_by(CACHE_LINE));
        std::hint::black_box(bytes.fold(0, |all, byte| all ^ byte));
    }

    /// All bytes up to the last chunk's end are in one of these records or counted as a hole, but for ends of chunks that
    /// were too short for the next record.
    #[cfg(test)]
    pub(super) fn invariant_every_byte_is_used_once(&self, records: impl Iterator<Item = (Place, usize)>) {
        let mut taken: Vec<Vec<bool>> = self.chunks.iter().map(|chunk| vec![false; chunk.len()]).collect();
        for (place, size) in records {
            let (chunk, offset) = place.parts();
            for byte in &mut taken[chunk][offset..offset + size] {
                assert!(!std::mem::replace(byte, true), "two records overlap in chunk {chunk}");
            }
        }
        let end = usize::from(self.end);
        let free = taken.iter().flatten().filter(|taken| !**taken).count();
        let behind = taken.last().map_or(0, |last| last.len() - end);
        assert!(free >= self.holes as usize + behind, "{free} free, {} holes", self.holes);
        assert!(taken.last().is_none_or(|last| !last[end..].contains(&true)), "a record behind the end");
        assert!(!self.is_wasteful(), "due to be laid out anew");
    }

    /// Bytes in records and holes, about.
    fn bytes(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.len()).sum()
    }
}

fn resize(chunk: &mut Box<[u8]>, len: usize) {
    let mut bytes = std::mem::take(chunk).into_vec();
    bytes.reserve_exact(len - bytes.len());
    bytes.resize(len, 0);
    *chunk = bytes.into_boxed_slice();
}
