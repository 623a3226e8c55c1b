//! A recorded history of registers, with deaths of leaders inside, is linearizable; and the judge that says so finds a
//! stale read put into that same history.

use std::time::Duration;

use anyhow::{Context, Result};
use kvorum_testkit::check::register::{Verdict, check, unknown_percent, with_a_stale_read};
use kvorum_testkit::history::{Action, Ending, Operation, Recorder, save};
use kvorum_testkit::random::Random;
use kvorum_testkit::workload::Registers;
use kvorum_testkit::{Cluster, Shape, binary};

/// At least so many operations are judged.
const OPERATIONS: usize = 24_000;
const KEYS: u64 = 400;
const READ_PERCENT: u64 = 60;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn registers_are_linearizable_while_leaders_die() -> Result<()> {
    let (mut random, seed) = Random::for_run("linearizable");
    let mut cluster = Cluster::start(Shape::default()).await?;
    let recorder = Recorder::default();
    let clients = (0..12).map(|_| cluster.client()).collect();
    let work = Registers::start(&recorder, clients, KEYS, READ_PERCENT, &mut random);

    // The clients go on until the last leader is back, however fast they are: every death lies inside the history.
    let mut kills = 0;
    for _ in 0..2 {
        reach(&recorder, recorder.len() + OPERATIONS / 5).await;
        let shard = random.below(3) as u16;
        let victim = cluster.server_of(&cluster.leader(shard).await?);
        cluster.kill(victim)?;
        kills += 1;
        eprintln!(
            "linearizable: killed server {victim}, leader of shard {shard}, after {} operations",
            recorder.len()
        );
        reach(&recorder, recorder.len() + OPERATIONS / 5).await;
        cluster.spawn(victim)?;
        cluster.ready().await?;
    }
    reach(&recorder, OPERATIONS.max(recorder.len() + OPERATIONS / 5)).await;
    work.stop().await;
    let history = recorder.history();

    let reads =
        history.iter().filter(|o| o.action == Action::Read && matches!(o.ending, Ending::Ok(_))).count();
    let unknown = unknown_percent(&history);
    eprintln!(
        "linearizable: {} operations, {reads} reads, {unknown:.3} % unknown, {kills} leader kills, seed {seed}",
        history.len()
    );
    assert!(2 * reads >= history.len(), "{} operations, {reads} reads", history.len());
    assert!(unknown <= 1.0, "{unknown} % unknown");

    judge(&history, seed)?;
    for _ in 0..10 {
        let (stale, at) = with_a_stale_read(&history, &mut random).context("no read can be made stale")?;
        assert!(matches!(check(&stale), Verdict::Violated { .. }), "the judge missed {:?}", stale[at]);
    }
    Ok(())
}

fn judge(history: &[Operation], seed: u64) -> Result<()> {
    let verdict = check(history);
    if verdict != Verdict::Linearizable {
        let path = binary::target_dir().join(format!("histories/linearizable-{seed}.edn"));
        save(history, &path)?;
        panic!("{verdict:?}; the history is in {}", path.display());
    }
    Ok(())
}

async fn reach(recorder: &Recorder, operations: usize) {
    let ended = tokio::time::timeout(Duration::from_secs(120), async {
        while recorder.len() < operations {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    ended.await.expect("the operations make progress");
}
