//! Prints what a key costs in memory: `cargo run --release -p kvorum-keyspace --example bytes_per_key [keys]`.
//!
//! Counts the bytes that the allocator was asked for, and the growth of the resident set beside it.

#![allow(clippy::print_stdout, reason = "printing is what it is for")]
#![allow(unsafe_code, reason = "a counting allocator has to implement GlobalAlloc")]

use kvorum_keyspace::{Keyspace, NullSink, Run, Settings, lookup};
use std::{
    alloc::{GlobalAlloc, Layout},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

struct Counting;

static ALLOCATED: AtomicUsize = AtomicUsize::new(0);

unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(layout.size(), Relaxed);
        unsafe { mimalloc::MiMalloc.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(layout.size(), Relaxed);
        unsafe { mimalloc::MiMalloc.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATED.fetch_add(size, Relaxed);
        ALLOCATED.fetch_sub(layout.size(), Relaxed);
        unsafe { mimalloc::MiMalloc.realloc(block, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn main() {
    let keys: usize = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(1_000_000);
    let mut keyspace = Keyspace::new(Settings { databases: 16, hash_seed: [7; 16] });
    let set = lookup(b"set").expect("SET exists");
    let Run::Write(set) = set.run else { unreachable!("SET writes") };
    let mut report = |what: &str, ttl: bool, value: &[u8]| {
        let (allocated, resident) = (ALLOCATED.load(Relaxed), resident_bytes());
        for n in 0..keys {
            let key = format!("{what}{n:012}");
            let mut args = vec![&b"SET"[..], key.as_bytes(), value];
            if ttl {
                args.extend([&b"PX"[..], b"100000"]);
            }
            let mut writer = keyspace.writer(0, 1_700_000_000_000, 0);
            set(&mut writer, &args, &mut NullSink).expect("SET succeeds");
        }
        let per_key = |after: usize, before: usize| after.saturating_sub(before) as f64 / keys as f64;
        println!(
            "{keys} keys of 16 bytes, values of {:3}{}: {:6.1} bytes allocated, {:6.1} resident, {:6.1} counted so far",
            value.len(),
            if ttl { ", deadline" } else { "" },
            per_key(ALLOCATED.load(Relaxed), allocated),
            per_key(resident_bytes(), resident),
            keyspace.used_memory() as f64 / keyspace.len(0) as f64,
        );
    };
    report("key:", false, &[b'v'; 16]);
    report("ttl:", true, &[b'v'; 16]);
    report("mid:", false, &[b'v'; 100]);
    report("big:", false, &[b'v'; 300]);
}

/// Resident set of this process, bytes; 0 where /proc does not tell.
fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok()).unwrap_or(0) * 4096
}
