//! Memory: reading a snapshot takes it for what was read, never for what was only promised; commands take it for what
//! they store, and values that move are not copied.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]
#![allow(unsafe_code, reason = "a counting allocator has to implement GlobalAlloc")]

mod support;

use kvorum_keyspace::{Keyspace, Settings, slot_of};
use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
};
use support::{Bare, Reply};

/// Counts what is allocated, and the most of it; and what it takes in blocks.
struct Counting;

static ALLOCATED: AtomicUsize = AtomicUsize::new(0);
static IN_BLOCKS: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

fn grown(by: usize) {
    IN_BLOCKS.fetch_add(block(by), SeqCst);
    PEAK.fetch_max(ALLOCATED.fetch_add(by, SeqCst) + by, SeqCst);
}

fn shrunk(by: usize) {
    IN_BLOCKS.fetch_sub(block(by), SeqCst);
    ALLOCATED.fetch_sub(by, SeqCst);
}

/// The block in which the server's allocator (mimalloc) puts so many bytes: of four sizes between two powers of two.
fn block(bytes: usize) -> usize {
    let step = (bytes.next_power_of_two() / 8).max(8);
    bytes.next_multiple_of(step)
}

unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grown(layout.size());
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        shrunk(layout.size());
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Both blocks may be there for a moment.
        grown(size);
        shrunk(layout.size());
        unsafe { System.realloc(block, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn settings() -> Settings {
    Settings { databases: 1, hash_seed: [3; 16] }
}

/// The most that `f` held at once, and what it gave.
fn peak_while<T>(f: impl FnOnce() -> T) -> (usize, T) {
    let before = ALLOCATED.load(SeqCst);
    PEAK.store(before, SeqCst);
    let given = f();
    (PEAK.load(SeqCst) - before, given)
}

/// The most that reading these bytes held at once, and whether they were a snapshot.
fn peak_of(bytes: &[u8]) -> (usize, bool) {
    peak_while(|| Keyspace::restore(settings(), 0, &mut &bytes[..]).is_ok())
}

fn dump_of(fill: impl FnOnce(&mut Bare)) -> Vec<u8> {
    let mut bare = Bare::new();
    bare.keyspace = Keyspace::new(settings());
    fill(&mut bare);
    bare.keyspace.dump()
}

// One test: another thread's allocations would count.
#[test]
fn memory_is_bounded() {
    a_key_takes_little_more_than_its_bytes();
    memory_follows_what_was_read();
    values_that_move_are_not_copied();
    what_a_command_refuses_takes_no_memory();
}

/// A million keys of 16 bytes in all slots are some 60 in each; a few of the slots are enough to see what they take.
fn a_key_takes_little_more_than_its_bytes() {
    let keys: Vec<Vec<u8>> = (0..1_000_000)
        .map(|n| format!("key:{n:012}").into_bytes())
        .filter(|key| slot_of(key).number() < 256)
        .collect();
    for (what, value_len, most) in [("short", 16, 60), ("middling", 100, 150)] {
        let mut bare = Bare::new();
        let before = (ALLOCATED.load(SeqCst), IN_BLOCKS.load(SeqCst));
        let per_key = |now: usize, before: usize| (now - before) / keys.len();
        for key in &keys {
            bare.run(&[b"SET", key, &vec![b'v'; value_len]]);
        }
        let allocated = per_key(ALLOCATED.load(SeqCst), before.0);
        let in_blocks = per_key(IN_BLOCKS.load(SeqCst), before.1);
        assert!(
            allocated <= in_blocks && in_blocks <= most,
            "{what}: {allocated} bytes, {in_blocks} in blocks"
        );
        // What is accounted for is near what it takes.
        let accounted = bare.keyspace.used_memory() as usize / keys.len();
        assert!(accounted.abs_diff(in_blocks) <= 6, "{what}: {accounted} accounted, {in_blocks} in blocks");

        // Values that come and go and change their length leave little behind.
        for (n, key) in keys.iter().enumerate() {
            bare.run(&[b"SET", key, &vec![b'w'; value_len / 2 + n % value_len]]);
            bare.run(&[b"EXPIRE", key, b"100"]);
        }
        for key in &keys {
            bare.run(&[b"PERSIST", key]);
            bare.run(&[b"SET", key, &vec![b'v'; value_len]]);
        }
        let in_blocks = per_key(IN_BLOCKS.load(SeqCst), before.1);
        assert!(in_blocks <= most * 13 / 10, "{what}: {in_blocks} in blocks after changes");
        for key in &keys {
            bare.run(&[b"DEL", key]);
        }
        let left = per_key(IN_BLOCKS.load(SeqCst), before.1);
        assert!(left <= 4, "{what}: {left} bytes a key are left");
    }
}

fn values_that_move_are_not_copied() {
    const LEN: usize = 4 << 20;
    let mut bare = Bare::new();
    bare.run(&[b"SET", b"from", &vec![b'v'; LEN]]);
    let (peak, ()) = peak_while(|| {
        for n in 0..100 {
            bare.line(&format!("COPY from to{n}"));
            bare.line(&format!("RENAME to{n} renamed{n}"));
            bare.line(&format!("MOVE renamed{n} 1"));
        }
    });
    assert!(peak < LEN, "{peak}");
    // Until one of them changes.
    let (peak, ()) = peak_while(|| drop(bare.line("APPEND from x")));
    assert!(peak >= LEN, "{peak}");
    let (peak, ()) = peak_while(|| drop(bare.line("SETRANGE from 0 x")));
    assert!(peak < LEN, "{peak}");
}

fn what_a_command_refuses_takes_no_memory() {
    const LITTLE: usize = 256 * 1024;
    let mut bare = Bare::new();
    let long = vec![b'a'; 20_000];
    bare.run(&[b"MSET", b"a", &long, b"b", &long]);
    // A compressed string that promises a terabyte, signed.
    let promise = b"\x00\xc3\x01\x81\x00\x00\x01\x00\x00\x00\x00\x00a\x0a\x00\x9aA\xc5\xe0\xfb\x8b\xcey";
    for (args, error) in [
        (
            &[&b"SETRANGE"[..], b"n", b"536870912", b"x"][..],
            "ERR string exceeds maximum allowed size (proto-max-bulk-len)",
        ),
        (
            &[b"SETRANGE", b"a", b"9223372036854775807", b"x"],
            "ERR string exceeds maximum allowed size (proto-max-bulk-len)",
        ),
        (&[b"RESTORE", b"n", b"0", promise], "ERR Bad data format"),
        (&[b"LCS", b"a", b"b"], "ERR Insufficient memory, failed allocating transient memory for LCS"),
        (&[b"INCRBYFLOAT", b"n", b"1e999999999"], "ERR value is not a valid float"),
    ] {
        let (peak, reply) = peak_while(|| bare.run(args));
        assert_eq!(reply, Reply::Error(error.into()));
        assert!(peak < LITTLE, "{peak} for {}", args[0].escape_ascii());
    }
}

fn memory_follows_what_was_read() {
    // A first piece of a text, and a page of the table of slots.
    const ALWAYS: usize = 256 * 1024;

    let big = dump_of(|bare| {
        bare.run(&[b"SET", b"big", &vec![b'b'; 20_000_000]]);
    });
    let (peak, restored) = peak_of(&big);
    assert!(restored && peak < 2 * big.len() + ALWAYS, "{peak} for a value of {}", big.len());
    // Nine tenths of it are missing.
    let cut = &big[..big.len() / 10];
    let (peak, restored) = peak_of(cut);
    assert!(!restored && peak < 3 * cut.len() + ALWAYS, "{peak} for {} bytes of a value", cut.len());

    let many = dump_of(|bare| {
        for n in 0..20_000 {
            bare.run(&[b"SET", format!("{{one slot}}{n}").as_bytes(), b"v", b"PX", b"10000"]);
        }
    });
    let (peak, restored) = peak_of(&many);
    assert!(restored && peak < 10 * many.len() + ALWAYS, "{peak} for keys of {}", many.len());

    // Promises: of a key, a value, keys in a slot, in every form that a flipped bit can give them.
    let small = dump_of(|bare| {
        bare.run(&[b"SET", b"key", &[b'v'; 300], b"PX", b"10000"]);
        bare.line("SET {key}2 v");
        bare.line("DEL gone");
    });
    for at in 0..small.len() {
        for byte in 0..=255 {
            let mut wrong = small.clone();
            wrong[at] = byte;
            let (peak, _) = peak_of(&wrong);
            assert!(peak < ALWAYS, "{peak} with byte {at} as {byte}");
        }
    }
    let promise = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f];
    for at in 0..small.len() {
        let wrong = [&small[..at], &promise, &small[at..]].concat();
        let (peak, _) = peak_of(&wrong);
        assert!(peak < ALWAYS, "{peak} with a promise at {at}");
    }
}
