//! Trials: a [load](crate::load) on one shard, something that goes wrong, and what must hold during and after it. They are the same for every
//! [`Nemesis`].

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::client::{Blocked, Client, Outcome, Patience};
use crate::load::{Call, Evidence, Load};
use crate::map::{Map, wait};
use crate::nemesis::{Fault, Nemesis};
use crate::random::Random;

/// Clients on each side.
const CLIENTS: usize = 6;
/// For commands that a working cluster has to get done.
const LIMIT: Duration = Duration::from_secs(30);
/// What a busy machine may add to a time that a server keeps.
const SLACK: Duration = Duration::from_secs(1);

/// The times that a cluster promises to keep when a leader is cut off.
#[derive(Clone, Copy, Debug)]
pub struct Promises {
    /// Length of a lease: so long a leader may go on answering.
    pub lease: Duration,
    /// For how long a server holds clients before it tells them that the shard is down.
    pub hold: Duration,
    /// The others serve after this.
    pub serves_within: Duration,
    /// How long the fault lasts.
    pub lasts: Duration,
}

/// The leader of a shard and what half of the clients can reach is that leader alone, and then `fault` cuts it off. The others do not
/// reach it any more either, and go on with the rest of the servers.
///
/// While it lasts: whoever talks to the leader gets definite errors once its lease and the hold are over, and never a confirmation of a
/// write; the others are served again in time. Afterwards: nothing is lost, stale, doubled or invented, and all replicas are level.
///
/// # Errors
/// What does not hold.
pub async fn cut_off(
    bed: &mut impl Nemesis,
    name: &str,
    fault: impl Fn(&Map, u16) -> Fault,
    promises: Promises,
    random: &mut Random,
) -> Result<()> {
    let map = bed.map().clone();
    map.ready().await?;
    let everyone: Vec<u16> = map.numbers().collect();
    let shard = random.below(map.shards().into()) as u16;
    let victim = map.server_of(&map.leader(&everyone, shard).await?);
    let slots = map.slots_of(&everyone, shard).await?;

    // A refusal is an answer here: nobody tries again for long.
    let patience =
        Patience { reply: promises.hold + promises.lasts + LIMIT, command: Duration::from_millis(100) };
    let others = || everyone.iter().filter(|n| **n != victim).flat_map(|n| map.addrs_of(*n));
    let (few_blocked, many_blocked) = (Blocked::default(), Blocked::default());
    few_blocked.set(others());
    let few = (0..CLIENTS).map(|_| Client::new(map.addrs_of(victim)).with_blocked(few_blocked.clone()));
    let many = (0..CLIENTS).map(|_| map.client().with_blocked(many_blocked.clone()));
    let clients = few.chain(many).map(|client| client.with_patience(patience)).collect();
    let load = Load::start(name, shard, slots, clients, random);
    load.progress(500, LIMIT).await?;

    many_blocked.set(map.addrs_of(victim));
    let began_ns = load.now_ns();
    bed.inflict(&fault(&map, victim))?;
    let cut_ns = load.now_ns();
    tokio::time::sleep(promises.lasts).await;
    let healed_ns = load.now_ns();
    bed.heal()?;
    many_blocked.set([]);
    map.ready().await?;
    load.progress(500, LIMIT).await?;
    let evidence = load.stop().await;

    let calls = evidence.calls();
    let resumed =
        served_again(calls, cut_ns).with_context(|| format!("{name}: the majority did not serve"))?;
    let few = few_are_told_the_truth(calls, cut_ns, healed_ns, promises).with_context(|| name.to_owned())?;
    let judged = evidence.judge(&map).await?;
    settled(bed).await?;
    eprintln!(
        "{name}: server {victim}, leader of shard {shard}, cut off for {:?} (in {:?}); the others served after {resumed:?}; \
         {few}; {judged}",
        promises.lasts,
        Duration::from_nanos(cut_ns - began_ns),
    );
    ensure!(resumed <= promises.serves_within, "{name}: the majority served only after {resumed:?}");
    Ok(())
}

/// When the first write was confirmed to a client that reaches the majority only.
fn served_again(calls: &[Call], cut_ns: u64) -> Option<Duration> {
    let confirmed = calls.iter().filter(|call| {
        call.client >= CLIENTS
            && call.writes
            && call.start_ns >= cut_ns
            && matches!(call.outcome, Outcome::Ok(_))
    });
    confirmed.map(|call| Duration::from_nanos(call.end_ns - cut_ns)).min()
}

/// What those were told who reach only the leader that was cut off.
fn few_are_told_the_truth(calls: &[Call], cut_ns: u64, healed_ns: u64, promises: Promises) -> Result<String> {
    let nanos = |duration: Duration| duration.as_nanos() as u64;
    let during =
        || calls.iter().filter(|c| c.client < CLIENTS && c.start_ns >= cut_ns && c.end_ns < healed_ns);
    let confirmed = during().find(|call| call.writes && matches!(call.outcome, Outcome::Ok(_)));
    ensure!(confirmed.is_none(), "a write was confirmed by a leader without a majority: {confirmed:?}");
    let lease_over_ns = cut_ns + nanos(promises.lease + SLACK / 4);
    let (mut refused, mut slowest) = (0, Duration::ZERO);
    for call in during().filter(|call| call.start_ns >= lease_over_ns) {
        let after = Duration::from_nanos(call.start_ns - cut_ns);
        ensure!(
            matches!(call.outcome, Outcome::Refused(_)),
            "a command sent {after:?} after the cut should be refused: {call:?}"
        );
        refused += 1;
        slowest = slowest.max(Duration::from_nanos(call.end_ns - call.start_ns));
    }
    ensure!(slowest <= promises.hold + SLACK, "a refusal took {slowest:?}");
    let stuck = calls.iter().filter(|call| {
        call.client < CLIENTS
            && call.start_ns >= lease_over_ns
            && call.start_ns + nanos(promises.hold + SLACK) < healed_ns
    });
    let stuck = stuck.filter(|call| call.end_ns >= healed_ns).count();
    ensure!(stuck == 0, "{stuck} commands had no answer until the cut was healed");
    ensure!(
        refused >= CLIENTS,
        "only {refused} commands were refused: the cut was too short to prove anything"
    );
    Ok(format!("{refused} commands refused behind the cut, after {slowest:?} at most"))
}

/// Faults one after the other, each done to a leader of the shard under load, each healed before the next. Writes go on meanwhile, and
/// in the end nothing is lost, stale, doubled or invented.
///
/// # Errors
/// What does not hold.
pub async fn harm(
    bed: &mut impl Nemesis,
    name: &str,
    faults: &[fn(&Map, u16) -> Fault],
    lasts: Duration,
    random: &mut Random,
) -> Result<()> {
    let map = bed.map().clone();
    map.ready().await?;
    let everyone: Vec<u16> = map.numbers().collect();
    let shard = random.below(map.shards().into()) as u16;
    let slots = map.slots_of(&everyone, shard).await?;
    // A frozen server answers nothing: only a client's own time-out gets it away from there.
    let patience = Patience { reply: Duration::from_secs(2), command: Duration::from_secs(1) };
    let clients = (0..2 * CLIENTS).map(|_| map.client().with_patience(patience)).collect();
    let load = Load::start(name, shard, slots, clients, random);
    for fault in faults {
        load.progress(200, LIMIT).await?;
        let victim = map.server_of(&map.leader(&everyone, shard).await?);
        let fault = fault(&map, victim);
        eprintln!("{name}: {fault:?}, while server {victim} leads shard {shard}");
        bed.inflict(&fault)?;
        let progress = load.progress(100, LIMIT).await;
        tokio::time::sleep(lasts).await;
        bed.heal()?;
        progress.with_context(|| format!("{name}: during {fault:?}"))?;
        map.ready().await?;
    }
    load.progress(200, LIMIT).await?;
    let evidence: Evidence = load.stop().await;
    eprintln!("{name}: {}", evidence.judge(&map).await?);
    settled(bed).await
}

/// Waits until all replicas are level.
async fn settled(bed: &impl Nemesis) -> Result<()> {
    wait("all replicas are level", async || bed.map().level(&bed.status()?)).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resp::Value;

    const PROMISES: Promises = Promises {
        lease: Duration::from_millis(600),
        hold: Duration::from_secs(1),
        serves_within: Duration::from_secs(2),
        lasts: Duration::from_secs(6),
    };

    fn call(client: usize, writes: bool, start_ms: u64, end_ms: u64, outcome: Outcome) -> Call {
        Call { client, writes, start_ns: start_ms * 1_000_000, end_ns: end_ms * 1_000_000, outcome }
    }

    fn refused() -> Outcome {
        Outcome::Refused("CLUSTERDOWN".to_owned())
    }

    /// Cut at 1 s, healed at 7 s; the calls of those who reach only the leader, and one more.
    fn judge(more: Call) -> Result<String> {
        let mut calls: Vec<Call> = (0..CLIENTS).map(|n| call(n, true, 2000, 3000, refused())).collect();
        calls.push(call(0, false, 1100, 1101, Outcome::Ok(Value::Null)));
        calls.push(call(0, true, 1200, 6200, Outcome::Unknown("UNKNOWN".to_owned())));
        calls.push(more);
        few_are_told_the_truth(&calls, 1_000_000_000, 7_000_000_000, PROMISES)
    }

    #[test]
    fn a_leader_without_majority_may_read_for_a_lease_and_leave_writes_unknown() {
        judge(call(1, true, 6500, 7500, Outcome::Ok(Value::ok()))).unwrap();
    }

    #[test]
    fn a_confirmed_write_a_late_read_and_an_unknown_outcome_after_the_lease_are_caught() {
        let confirmed = judge(call(1, true, 1100, 1200, Outcome::Ok(Value::ok()))).unwrap_err();
        assert!(confirmed.to_string().contains("was confirmed"), "{confirmed}");
        for outcome in [Outcome::Ok(Value::Null), Outcome::Unknown(String::new())] {
            let late = judge(call(1, false, 2500, 2600, outcome)).unwrap_err();
            assert!(late.to_string().contains("should be refused"), "{late}");
        }
    }

    #[test]
    fn a_slow_refusal_and_one_that_never_came_are_caught() {
        let slow = judge(call(1, false, 2500, 5000, refused())).unwrap_err();
        assert!(slow.to_string().contains("took"), "{slow}");
        let never = judge(call(1, false, 2500, 7100, refused())).unwrap_err();
        assert!(never.to_string().contains("no answer"), "{never}");
    }

    #[test]
    fn service_is_resumed_by_a_confirmed_write_of_the_majority() {
        let ok = || Outcome::Ok(Value::ok());
        let calls = [
            call(CLIENTS, true, 900, 1100, ok()),
            call(CLIENTS, false, 1100, 1200, ok()),
            call(0, true, 1100, 1200, ok()),
            call(CLIENTS, true, 1500, 2100, ok()),
        ];
        assert_eq!(served_again(&calls, 1_000_000_000), Some(Duration::from_millis(1100)));
    }
}
