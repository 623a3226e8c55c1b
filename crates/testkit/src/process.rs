//! What processes take of the machine, as the kernel counts it.

use std::time::Duration;

use anyhow::{Context, Result};

/// Resident memory of a process, in bytes.
///
/// # Errors
/// When there is no such process.
pub fn resident_bytes(pid: u32) -> Result<u64> {
    status_bytes(pid, "VmRSS:")
}

/// The most resident memory that it ever had, in bytes.
///
/// # Errors
/// When there is no such process.
pub fn peak_resident_bytes(pid: u32) -> Result<u64> {
    status_bytes(pid, "VmHWM:")
}

fn status_bytes(pid: u32, field: &str) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)).with_context(|| field.to_owned())?;
    let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kilobytes * 1024)
}

/// Processor time that a process took so far, its threads' together. In ticks of the kernel: 10 ms, mostly.
///
/// # Errors
/// When there is no such process.
pub fn cpu_time(pid: u32) -> Result<Duration> {
    // utime and stime.
    times(&format!("/proc/{pid}/stat"), 14)
}

/// The same of all children of this process that it has waited for.
///
/// # Errors
/// When the kernel does not tell.
pub fn children_cpu_time() -> Result<Duration> {
    // cutime and cstime.
    times("/proc/self/stat", 16)
}

/// The sum of two fields, counted from 1 as proc(5) does.
fn times(path: &str, first: usize) -> Result<Duration> {
    let stat = std::fs::read_to_string(path).with_context(|| path.to_owned())?;
    let ticks = fields(&stat, first).with_context(|| format!("{path} says {stat}"))?;
    Ok(Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64))
}

fn fields(stat: &str, first: usize) -> Option<u64> {
    // The second field is a name in parentheses, which may hold anything.
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut numbers = after_name.split_ascii_whitespace().skip(first - 3);
    Some(numbers.next()?.parse::<u64>().ok()? + numbers.next()?.parse::<u64>().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_counted_from_the_name_on() {
        let stat = "7 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15";
        assert_eq!((fields(stat, 14), fields(stat, 16)), (Some(23), Some(27)));
        assert_eq!(fields("7 (a) S 1", 14), None);
    }

    #[test]
    fn a_process_has_memory_and_had_no_less() {
        let me = std::process::id();
        let now = resident_bytes(me).unwrap();
        assert!(now > 0 && peak_resident_bytes(me).unwrap() >= now);
    }

    #[test]
    fn a_process_that_waits_takes_no_processor_time() {
        let mut sleeper = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        std::thread::sleep(Duration::from_millis(100));
        let took = cpu_time(sleeper.id());
        sleeper.kill().unwrap();
        sleeper.wait().unwrap();
        assert!(took.unwrap() < Duration::from_millis(50));
    }

    #[test]
    fn who_computes_takes_processor_time() {
        let (me, before) = (std::process::id(), cpu_time(std::process::id()).unwrap());
        let mut sum = 0u64;
        let began = std::time::Instant::now();
        while cpu_time(me).unwrap() < before + Duration::from_millis(50) {
            sum = std::hint::black_box(sum + 1);
            assert!(began.elapsed() < Duration::from_secs(60));
        }
    }
}
