//! `kvorum cluster events`: the failover timeline of a server, as a table or as JSON.

use anyhow::{Context, Result};
use kvorum_node::{AdminClient, TimelineEvent};

use super::cluster::columns;

/// Arguments of `kvorum cluster events`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A server of the cluster, by host and peer port; each has its own view of what happened
    #[arg(long, value_name = "HOST:PEERPORT", default_value = "127.0.0.1:7198")]
    server: String,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

/// What to print.
pub(crate) async fn report(args: &Args) -> Result<String> {
    let events = AdminClient::connect(&args.server).await?.failover_events().await?;
    if args.json {
        return Ok(serde_json::to_string_pretty(&events).context("writing JSON")? + "\n");
    }
    Ok(table(&events))
}

fn table(events: &[TimelineEvent]) -> String {
    if events.is_empty() {
        return "nothing happened since this server was started\n".to_owned();
    }
    let mut text = String::new();
    let rows = events.iter().map(|event| {
        [&utc(event.at_ms), &event.master, &event.event, &event.payload, &event.cause]
            .map(Clone::clone)
            .to_vec()
    });
    columns(&mut text, &["time (UTC)", "master", "event", "payload", "cause"], rows.collect());
    text
}

/// `2026-11-27 20:19:36.123`, of milliseconds since the Unix epoch.
fn utc(at_ms: u64) -> String {
    let (days, of_day) = (at_ms / 86_400_000, at_ms % 86_400_000);
    let (year, month, day) = date(days);
    let (hours, minutes) = (of_day / 3_600_000, of_day / 60_000 % 60);
    let (seconds, millis) = (of_day / 1000 % 60, of_day % 1000);
    format!("{year:04}-{month:02}-{day:02} {hours:02}:{minutes:02}:{seconds:02}.{millis:03}")
}

/// Year, month and day of so many days after the first of January 1970, by the Gregorian calendar.
fn date(days: u64) -> (u64, u64, u64) {
    // Counted in years that begin in March, whose last month is the odd one; an era has 400 of them.
    let since_year_0 = days + 719_468;
    let (era, of_era) = (since_year_0 / 146_097, since_year_0 % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_by_people() {
        for (at_ms, text) in [
            (0, "1970-01-01 00:00:00.000"),
            (951_782_399_999, "2000-02-28 23:59:59.999"),
            (951_782_400_000, "2000-02-29 00:00:00.000"),
            (1_795_810_776_123, "2026-11-27 20:19:36.123"),
            (4_107_542_399_000, "2100-02-28 23:59:59.000"),
            (4_107_542_400_000, "2100-03-01 00:00:00.000"),
        ] {
            assert_eq!(utc(at_ms), text);
        }
    }

    #[test]
    fn a_row_for_each_event() {
        assert_eq!(table(&[]), "nothing happened since this server was started\n");
        let event = TimelineEvent {
            id: 1,
            at_ms: 0,
            shard: 0,
            master: "mymaster".to_owned(),
            event: "+switch-master".to_owned(),
            payload: "mymaster a 1 b 2".to_owned(),
            cause: "because".to_owned(),
        };
        let text = table(&[event]);
        assert!(
            text.starts_with("time (UTC)               master    event           payload           cause\n"),
            "{text}"
        );
        assert!(text.ends_with("+switch-master  mymaster a 1 b 2  because\n"), "{text}");
    }
}
