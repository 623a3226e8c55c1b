//! What the kernel says about this process.

use std::fs;
use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

/// Page size and clock tick of every Linux we run on.
const PAGE_BYTES: u64 = 4096;
const TICKS_PER_SECOND: f64 = 100.0;

/// When this was asked for the first time: [`start`] is called early.
static STARTED: LazyLock<SystemTime> = LazyLock::new(SystemTime::now);

/// The `n`-th number of a line of numbers in /proc, 0 when it is not there.
fn number(text: &str, n: usize) -> u64 {
    text.split_ascii_whitespace().nth(n).and_then(|number| number.parse().ok()).unwrap_or(0)
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// When the process started, or nearly, since the Unix epoch.
pub(crate) fn start() -> Duration {
    STARTED.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

/// Bytes of memory that the process has, and that it has reserved.
pub(crate) fn memory_bytes() -> (u64, u64) {
    let pages = read("/proc/self/statm");
    (number(&pages, 1) * PAGE_BYTES, number(&pages, 0) * PAGE_BYTES)
}

/// Bytes of memory of the machine.
pub(crate) fn total_memory_bytes() -> u64 {
    let text = read("/proc/meminfo");
    text.lines().find(|line| line.starts_with("MemTotal:")).map_or(0, |line| number(line, 1) * 1024)
}

/// CPU time of the process in user and in kernel mode, seconds, and of its children that have ended.
pub(crate) struct CpuTime {
    pub(crate) user: f64,
    pub(crate) system: f64,
    pub(crate) user_children: f64,
    pub(crate) system_children: f64,
}

/// The numbers of /proc/…/stat behind the command's name, which stands in parentheses and may hold blanks.
fn stat(path: &str) -> String {
    read(path).rsplit_once(')').map_or_else(String::new, |(_, numbers)| numbers.to_owned())
}

/// CPU time so far.
pub(crate) fn cpu_time() -> CpuTime {
    let numbers = stat("/proc/self/stat");
    let seconds = |n| number(&numbers, n) as f64 / TICKS_PER_SECOND;
    CpuTime {
        user: seconds(11),
        system: seconds(12),
        user_children: seconds(13),
        system_children: seconds(14),
    }
}

/// CPU time of the thread that asks, in user and in kernel mode, seconds.
pub(crate) fn thread_cpu_time() -> (f64, f64) {
    let numbers = stat("/proc/thread-self/stat");
    let seconds = |n| number(&numbers, n) as f64 / TICKS_PER_SECOND;
    (seconds(11), seconds(12))
}

/// Number of threads.
pub(crate) fn threads() -> u64 {
    number(&stat("/proc/self/stat"), 17)
}

/// Open files, and how many may be open.
pub(crate) fn files() -> (u64, Option<u64>) {
    let open = fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count() as u64);
    // One of them is the directory itself.
    let most = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    (open.saturating_sub(1), most)
}

/// Name, release and architecture of the operating system.
pub(crate) fn operating_system() -> String {
    let kernel = |name: &str| read(&format!("/proc/sys/kernel/{name}")).trim().to_owned();
    format!("{} {} {}", kernel("ostype"), kernel("osrelease"), std::env::consts::ARCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_knows_us() {
        let (resident, reserved) = memory_bytes();
        assert!(resident > 1 << 20 && reserved >= resident, "{resident} of {reserved}");
        assert!(total_memory_bytes() > resident);
        let (open, most) = files();
        assert!(open >= 3 && most.is_none_or(|most| open <= most));
        assert!(threads() >= 1);
        assert!(cpu_time().user >= 0.0);
        assert!(operating_system().starts_with("Linux "));
    }
}
