//! LATENCY: what took longer than `latency-monitor-threshold`, and how long commands take.

use crate::latency::{COMMAND, FAST_COMMAND, WAL_SYNC};
use crate::port::{Place, wall_time};
use crate::resp::RespSink;
use kvorum_keyspace::{Args, Command, Error, Outcome, Sink, lookup};
use std::fmt::Write;
use std::sync::atomic::Ordering;

const HELP: &[&str] = &[
    "LATENCY <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
    "DOCTOR",
    "    Return a human readable latency analysis report.",
    "GRAPH <event>",
    "    Return an ASCII latency graph for the <event> class.",
    "HISTORY <event>",
    "    Return time-latency samples for the <event> class.",
    "LATEST",
    "    Return the latest latency samples for all events.",
    "RESET [<event> ...]",
    "    Reset latency data of one or more <event> classes.",
    "    (default: reset all data for all event classes)",
    "HISTOGRAM [COMMAND ...]",
    "    Return a cumulative distribution of latencies in the format of a histogram for the specified command names.",
    "    If no commands are specified then all histograms are replied.",
    "HELP",
    "    Prints this help.",
];

pub(super) fn latency(command: &Command, args: Args<'_>, place: Place<'_>, out: &mut RespSink) -> Outcome {
    let monitor = &place.port.latency;
    match command.subname() {
        "latest" => {
            let all = monitor.all();
            out.array(all.len());
            for (event, series) in all {
                let (at_s, took_ms) = series.latest().map_or((0, 0), |last| (last.at_s, last.took_ms));
                out.array(4);
                out.bulk(event.as_bytes());
                [at_s, took_ms, series.worst_ms].into_iter().for_each(|value| out.int(value.cast_signed()));
            }
        }
        "history" => {
            let series = monitor.series(args[2]).map(|(_, series)| series).unwrap_or_default();
            out.array(series.samples().len());
            for sample in series.samples() {
                out.array(2);
                out.int(sample.at_s.cast_signed());
                out.int(sample.took_ms.cast_signed());
            }
        }
        "graph" => {
            let Some((event, series)) = monitor.series(args[2]) else {
                return Err(Error::quoting("ERR No samples available for event '", args[2], "'"));
            };
            out.verbatim("txt", series.graph(event, wall_time().as_secs()).as_bytes());
        }
        "reset" => out.count(monitor.reset(&args[2..])),
        "doctor" => out.verbatim("txt", doctor(place).as_bytes()),
        "histogram" => histogram(&args[2..], place, out),
        _ => out.help(HELP),
    }
    Ok(())
}

/// LATENCY HISTOGRAM [command …]; a container stands for its subcommands.
fn histogram(names: Args<'_>, place: Place<'_>, out: &mut RespSink) {
    let mut rows: Vec<&Command> = Vec::new();
    for name in names {
        let mut parts = name.splitn(2, |&byte| byte == b'|');
        let top = parts.next().and_then(lookup);
        let found = match (top, parts.next()) {
            (Some(top), Some(sub)) => top.subcommand(sub),
            (top, _) => top,
        };
        let Some(found) = found else { continue };
        rows.extend(std::iter::once(found).chain(found.subcommands));
    }
    let wanted = |name: &str| names.is_empty() || rows.iter().any(|row| row.name == name);
    let shown: Vec<_> = place
        .port
        .stats
        .latencies()
        .filter(|(name, distribution)| wanted(name) && distribution.total() > 0)
        .collect();
    out.map(shown.len());
    for (name, distribution) in shown {
        out.bulk(name.as_bytes());
        out.map(2);
        out.bulk(b"calls");
        out.int(distribution.total().cast_signed());
        out.bulk(b"histogram_usec");
        let buckets = distribution.doubling_us();
        out.map(buckets.len());
        for (us, calls) in buckets {
            out.int(us.cast_signed());
            out.int(calls.cast_signed());
        }
    }
}

/// LATENCY DOCTOR. The first lines are Redis's; the advice is about this server.
fn doctor(place: Place<'_>) -> String {
    let settings = &place.port.settings;
    let threshold = settings.latency_monitor_threshold();
    let all = place.port.latency.all();
    if all.is_empty() && threshold.is_none() {
        return "I'm sorry, Dave, I can't do that. Latency monitoring is disabled in this Redis instance. You may use \
                \"CONFIG SET latency-monitor-threshold <milliseconds>.\" in order to enable it. If we weren't in a deep \
                space mission I'd suggest to take a look at https://redis.io/topics/latency-monitor.\n"
            .to_owned();
    }
    if all.is_empty() {
        return "Dave, no latency spike was observed during the lifetime of this Redis instance, not in the slightest bit. \
                I honestly think you ought to sit down calmly, take a stress pill, and think things over.\n"
            .to_owned();
    }
    let mut report = "Dave, I have observed latency spikes in this Redis instance. You don't mind talking about it, do you \
                      Dave?\n\n"
        .to_owned();
    let now_s = wall_time().as_secs();
    let mut advice = Vec::new();
    for (n, (event, series)) in (1..).zip(&all) {
        let summary = series.summary(now_s);
        let line = writeln!(
            report,
            "{n}. {event}: {} latency spikes (average {}ms, mean deviation {}ms, period {:.2} sec). Worst all time event \
             {}ms.",
            summary.count, summary.average_ms, summary.deviation_ms, summary.period_s, series.worst_ms
        );
        line.expect("a String takes everything");
        match *event {
            COMMAND => {
                let slower_than_us = settings.slowlog_log_slower_than_us.load(Ordering::Relaxed);
                let threshold_us = threshold.map_or(0, |threshold| threshold.as_micros().cast_signed());
                if slower_than_us < 0 || i128::from(slower_than_us) > threshold_us {
                    advice.push(format!(
                        "- The slow log does not show all of these commands. Use 'CONFIG SET slowlog-log-slower-than \
                         {threshold_us}'."
                    ));
                }
                advice.push(
                    "- SLOWLOG GET says which commands take long. Split them: SCAN instead of KEYS, ranges instead of whole \
                     collections, UNLINK for large values."
                        .to_owned(),
                );
            }
            FAST_COMMAND => advice.push(
                "- Commands that take microseconds took milliseconds: the machine does not give this process the CPU \
                 when it wants it. Look at its load, at limits of its container, and at neighbours on the same host."
                    .to_owned(),
            ),
            WAL_SYNC => advice.push(
                "- The disk takes long to sync the log, and every write waits for it on a majority of servers. Use local SSDs, \
                 keep other writers off that disk, and compare servers by kvorum_wal_sync_duration_seconds."
                    .to_owned(),
            ),
            _ => {}
        }
    }
    if !advice.is_empty() {
        write!(report, "\nI have a few advices for you:\n\n{}\n", advice.join("\n"))
            .expect("a String takes everything");
    }
    report
}
