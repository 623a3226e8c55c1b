//! A client of HTTP ports, one request a connection; and Prometheus's text format, read as strictly as its specification has it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// No answer takes longer.
const PATIENCE: Duration = Duration::from_secs(20);

/// An answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Response {
    /// Its code.
    pub status: u16,
    /// Its first lines, in lower case.
    pub head: String,
    /// What follows.
    pub body: String,
}

/// Sends bytes to `host:port` and reads until the server closes the connection.
///
/// # Errors
/// When it cannot connect, nothing comes for a while, or what comes is no answer.
pub async fn send(addr: &str, request: &[u8]) -> Result<Response> {
    let answered = async {
        let mut stream = TcpStream::connect(addr).await?;
        // Who does not like a request may close before it has read all of it.
        let sent = stream.write_all(request).await;
        let mut bytes = Vec::new();
        let received = stream.read_to_end(&mut bytes).await;
        if bytes.is_empty() {
            sent?;
            received?;
        }
        Ok::<_, std::io::Error>(bytes)
    };
    let bytes = tokio::time::timeout(PATIENCE, answered).await.context("no answer")??;
    let text = String::from_utf8(bytes).context("an answer is text")?;
    let (head, body) = text.split_once("\r\n\r\n").with_context(|| format!("{text:?} is no answer"))?;
    let status = head.strip_prefix("HTTP/1.").and_then(|rest| rest.split(' ').nth(1)?.parse().ok());
    let status = status.with_context(|| format!("{head:?} has no status"))?;
    Ok(Response { status, head: head.to_lowercase(), body: body.to_owned() })
}

/// The answer to a GET.
///
/// # Errors
/// As [`send`], and when a part of the answer is missing.
pub async fn get(addr: &str, path: &str) -> Result<Response> {
    let response = send(addr, format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await?;
    let length = response.head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let length: usize = length.context("no length")?.trim().parse()?;
    ensure!(response.body.len() == length, "{} of {length} bytes came", response.body.len());
    Ok(response)
}

/// The text of a scrape: metric families by name.
#[derive(Default, Debug)]
pub struct Exposition(BTreeMap<String, Family>);

/// One metric family.
#[derive(Default, Debug)]
struct Family {
    kind: String,
    samples: Vec<Sample>,
}

#[derive(Debug)]
struct Sample {
    /// What a histogram adds to the name.
    suffix: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

impl Exposition {
    /// Reads Prometheus's text format 0.0.4. Every family has HELP and TYPE in front of all its samples, which stand together; no
    /// sample stands twice; counters end in `_total`; the buckets of histograms ascend and end with the count.
    ///
    /// # Errors
    /// With what is not so.
    pub fn parse(text: &str) -> Result<Exposition> {
        ensure!(text.ends_with('\n'), "the last line has no end");
        let mut families: BTreeMap<String, Family> = BTreeMap::new();
        let mut current = String::new();
        let mut help = None;
        let mut seen = BTreeSet::new();
        for line in text.lines() {
            let wrong = || format!("{line:?} is out of place or no line of this format");
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, words) = rest.split_once(' ').with_context(wrong)?;
                ensure!(is_name(name) && words.ends_with('.'), wrong());
                help = Some(name.to_owned());
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').with_context(wrong)?;
                ensure!(help.take().as_deref() == Some(name), wrong());
                ensure!(["counter", "gauge", "histogram"].contains(&kind), wrong());
                ensure!((kind == "counter") == name.ends_with("_total"), wrong());
                let family = Family { kind: kind.to_owned(), samples: Vec::new() };
                ensure!(families.insert(name.to_owned(), family).is_none(), "{name} stands twice");
                current = name.to_owned();
            } else {
                let (name, sample) = Sample::parse(line).with_context(wrong)?;
                let suffix = name.strip_prefix(&current).with_context(wrong)?.to_owned();
                let family = families.get_mut(&current).with_context(wrong)?;
                let suffixes: &[&str] =
                    if family.kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
                ensure!(suffixes.contains(&suffix.as_str()), wrong());
                ensure!((suffix == "_bucket") == sample.labels.contains_key("le"), wrong());
                ensure!(seen.insert((name.to_owned(), sample.labels.clone())), "{line:?} stands twice");
                family.samples.push(Sample { suffix, ..sample });
            }
        }
        for (name, family) in &families {
            ensure!(!family.samples.is_empty(), "{name} has no samples");
            family.check_buckets().with_context(|| name.clone())?;
        }
        Ok(Exposition(families))
    }

    /// The value of the sample with these labels, among others; of a histogram the count.
    ///
    /// # Panics
    /// When there is none.
    #[track_caller]
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let found = self.try_value(name, labels);
        found.unwrap_or_else(|| panic!("{name} has no {labels:?}: {:?}", self.0.get(name)))
    }

    /// The same; `None` when there is none.
    pub fn try_value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let samples = &self.0.get(name)?.samples;
        let found = samples.iter().find(|sample| {
            let has =
                |(name, value): &(&str, &str)| sample.labels.get(*name).is_some_and(|have| have == value);
            sample.suffix != "_bucket" && sample.suffix != "_sum" && labels.iter().all(has)
        });
        found.map(|sample| sample.value)
    }
}

impl Sample {
    /// The name, with its suffix, and the rest of a line.
    fn parse(line: &str) -> Option<(&str, Sample)> {
        let (name, mut rest) = line.split_at(line.find(['{', ' '])?);
        let mut labels = BTreeMap::new();
        if let Some(inside) = rest.strip_prefix('{') {
            let (inside, behind) = inside.split_once('}')?;
            for pair in inside.split(',') {
                let (name, value) = pair.split_once('=')?;
                let value = value.strip_prefix('"')?.strip_suffix('"')?;
                let fresh = labels.insert(name.to_owned(), value.to_owned()).is_none();
                if !fresh || !is_name(name) || value.contains(['"', '\\']) {
                    return None;
                }
            }
            rest = behind;
        }
        let value: f64 = rest.strip_prefix(' ')?.parse().ok()?;
        (value.is_finite() && value >= 0.0).then(|| (name, Sample { suffix: String::new(), labels, value }))
    }
}

impl Family {
    fn check_buckets(&self) -> Result<()> {
        let mut last: Option<(BTreeMap<String, String>, f64, f64)> = None;
        for Sample { suffix, labels, value } in &self.samples {
            let mut labels = labels.clone();
            let bound = labels.remove("le").map(|bound| bound.replace("+Inf", "inf").parse::<f64>());
            match (suffix.as_str(), bound.transpose()?) {
                ("_bucket", Some(bound)) => {
                    if let Some((same, before, count)) = &last
                        && *same == labels
                    {
                        ensure!(bound > *before && value >= count, "buckets do not ascend");
                    }
                    last = Some((labels, bound, *value));
                }
                ("_count", None) => {
                    let (same, bound, count) = last.take().context("a count without buckets")?;
                    ensure!(same == labels && bound.is_infinite() && count == *value, "buckets lack some");
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn is_name(text: &str) -> bool {
    let first = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    first && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "# HELP a_total A.\n# TYPE a_total counter\na_total{x=\"1\"} 2\na_total{x=\"2\"} 3.5\n\
                        # HELP h H.\n# TYPE h histogram\nh_bucket{le=\"1\"} 1\nh_bucket{le=\"+Inf\"} 2\nh_sum 3\nh_count 2\n";

    #[test]
    fn samples_are_found_by_their_labels() {
        let text = Exposition::parse(GOOD).unwrap();
        assert_eq!(text.value("a_total", &[("x", "2")]), 3.5);
        assert_eq!(text.value("h", &[]), 2.0);
    }

    #[test]
    fn what_is_a_little_wrong_is_found() {
        for (from, to) in [
            ("h_count 2\n", "h_count 2"),
            ("x=\"2\"", "x=\"1\""),
            (" counter", " gauge"),
            ("# HELP h H.\n", ""),
            ("le=\"+Inf\"} 2", "le=\"2\"} 2"),
            ("le=\"1\"} 1", "le=\"1\"} 5"),
            ("h_count 2", "h_count 3"),
            ("a_total{x=\"2\"} 3.5\n", "b 1\n"),
            ("3.5", "NaN"),
            ("h_sum 3", "h_total 3"),
        ] {
            assert!(GOOD.contains(from) && Exposition::parse(&GOOD.replacen(from, to, 1)).is_err(), "{from}");
        }
    }
}
