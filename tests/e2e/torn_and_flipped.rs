//! A log that a crash left torn is repaired; a log that was damaged is refused, with file and offset.

use anyhow::{Context, Result};
use kvorum_testkit::check::ledger::Ledger;
use kvorum_testkit::random::Random;
use kvorum_testkit::wal;
use kvorum_testkit::workload::{Writers, read_back};
use kvorum_testkit::{Cluster, Shape};
use std::time::Duration;

/// A cluster with some writes that all replicas have, and what the writers were told.
async fn cluster_with_data(random: &mut Random) -> Result<(Cluster, Ledger)> {
    let mut cluster = Cluster::start(Shape::default()).await?;
    let writers = Writers::start("data", 4, || cluster.client(), random);
    writers.progress(1000, Duration::from_secs(30)).await;
    let written = writers.stop().await;
    // Only what every replica has may be damaged on one: a server that forgets what it acknowledged is another failure.
    cluster.caught_up().await?;
    Ok((cluster, written.ledger))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_torn_tail_is_cut_and_the_server_serves() -> Result<()> {
    let (mut random, seed) = Random::for_run("torn_tail");
    let (mut cluster, ledger) = cluster_with_data(&mut random).await?;
    for round in 0..4 {
        let victim = 1 + random.below(3) as u16;
        cluster.kill(victim)?;
        let segment = wal::segments(&cluster.server_dir(victim))?.pop().context("a segment")?;
        let last = *wal::frames(&segment)?.last().context("a frame")?;
        // What a crash tears was never acknowledged: the frame after the last one. The first half of the rounds
        // leaves zeros behind what arrived, as in a preallocated file; the others end the file there.
        let length = 100 + random.below(8000) as u32;
        let arrived = random.below(length.into()) as u32;
        let torn_at = wal::tear(&segment, &last, length, arrived)?;
        let cut_at = torn_at + random.below(32 + u64::from(arrived));
        if round >= 2 {
            wal::cut(&segment, cut_at)?;
        }
        eprintln!(
            "torn_tail: round {round}: {} torn at {torn_at}, {arrived} of {length} bytes",
            segment.display()
        );
        let said_before = cluster.log(victim).len();
        cluster.spawn(victim)?;
        cluster.ready().await?;
        cluster.caught_up().await?;
        let said = cluster.log(victim)[said_before..].to_owned();
        assert!(
            said.contains("torn") && said.contains(&torn_at.to_string()),
            "seed {seed}: no word of the repair: {said}"
        );
        let audit = ledger.audit(&read_back(&mut cluster.client(), &ledger).await);
        assert!(audit.is_clean(), "seed {seed}, round {round}: {audit}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flipped_byte_in_the_middle_is_refused_with_file_and_offset() -> Result<()> {
    let (mut random, seed) = Random::for_run("flipped_byte");
    let (mut cluster, ledger) = cluster_with_data(&mut random).await?;
    let victim = 1 + random.below(3) as u16;
    cluster.kill(victim)?;
    let segment = wal::segments(&cluster.server_dir(victim))?.remove(0);
    let frames = wal::frames(&segment)?;
    let known_synced = frames.iter().map(|frame| frame.synced).max().unwrap_or(0);
    let middle: Vec<_> = frames.iter().skip(1).filter(|f| f.sequence <= known_synced && f.body > 0).collect();
    anyhow::ensure!(middle.len() > 10, "only {} frames to choose from", middle.len());
    let frame = middle[random.below(middle.len() as u64) as usize];
    let flipped = frame.body_at() + random.below(frame.body);
    wal::flip(&segment, flipped)?;

    let said_before = cluster.log(victim).len();
    cluster.spawn(victim)?;
    let status = cluster.exit_of(victim).await?;
    let said = cluster.log(victim)[said_before..].to_owned();
    eprintln!("flipped_byte: byte {flipped} in {frame:?}; the server said: {}", said.trim());
    assert_eq!(status.code(), Some(1), "seed {seed}: {said}");
    let name = segment.file_name().context("a name")?.to_string_lossy().into_owned();
    let line = said.lines().find(|line| line.starts_with("kvorum: ")).context("no line says why")?;
    assert!(line.contains(&name), "seed {seed}: no file name in: {line}");
    let offsets = line.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse::<u64>().ok());
    let end = frame.body_at() + frame.body;
    assert!(
        offsets.into_iter().any(|offset| (frame.offset..end).contains(&offset)),
        "seed {seed}: the damage is at {flipped}, in the frame at {}, but the server said: {line}",
        frame.offset
    );

    // The others go on; and the undamaged log is accepted again, so it was the damage that was refused.
    cluster.ready().await?;
    wal::flip(&segment, flipped)?;
    cluster.spawn(victim)?;
    cluster.ready().await?;
    cluster.caught_up().await?;
    let audit = ledger.audit(&read_back(&mut cluster.client(), &ledger).await);
    assert!(audit.is_clean(), "seed {seed}: {audit}");
    Ok(())
}
