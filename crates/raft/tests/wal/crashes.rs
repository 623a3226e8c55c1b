//! Loss of power and kill -9 at every operation on the disk: what was acknowledged is there, and what is there was called.

use std::time::Duration;

use kvorum_raft::{
    disk::{Fault, MemoryDisk},
    wal::{GroupId, SyncMode, Wal, WalConfig},
};
use proptest::{
    strategy::{Strategy, ValueTree},
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};

use crate::{
    model::{Call, Model, any_history},
    support::{Ack, open_with, small},
};

const GROUPS: u64 = 4;

/// The states a group went through, and how far it was acknowledged.
struct Past {
    states: Vec<Model>,
    acknowledged: usize,
}

impl Past {
    fn invariant_a_prefix_with_all_that_was_acknowledged(
        &self,
        wal: &Wal,
        id: u64,
        least: usize,
        context: &str,
    ) -> usize {
        let log = wal.group(GroupId(id));
        let found = (least..self.states.len()).rev().find(|&at| self.states[at].differs(&log).is_none());
        let Some(at) = found else {
            let state = log.state();
            let acknowledged = self.states[least].differs(&log);
            panic!(
                "{context}: group {id} has {state:?}, no state it had from call {least} on: {acknowledged:?}"
            );
        };
        if let Some(call) = Model::committed_call(&log) {
            assert!(
                call as usize <= at,
                "{context}: group {id} knows of commit {call} but only of {at} calls"
            );
        }
        at
    }
}

/// Runs a history until the disk fails; returns what each group went through.
fn run(
    disk: &MemoryDisk,
    config: WalConfig,
    mode: SyncMode,
    history: &[(u64, Call)],
    wait_every: usize,
) -> Vec<Past> {
    let mut pasts: Vec<_> =
        (0..GROUPS).map(|_| Past { states: vec![Model::default()], acknowledged: 0 }).collect();
    let Ok((wal, _)) = open_with(disk, config) else { return pasts };
    let logs: Vec<_> = (0..GROUPS).map(|id| wal.group(GroupId(id))).collect();
    logs.iter().for_each(|log| log.set_sync(mode));
    let mut acks = Vec::new();
    for (number, (group, call)) in history.iter().enumerate() {
        let past = &mut pasts[*group as usize];
        let mut model = past.states[past.states.len() - 1].clone();
        let (done, ack) = Ack::new();
        model.call(call, &logs[*group as usize], done);
        past.states.push(model);
        let unacknowledged = matches!(call, Call::Committed | Call::Forget);
        acks.push((*group as usize, past.states.len() - 1, unacknowledged, ack));
        if number % wait_every == 0 {
            wait(&mut acks, &mut pasts);
        }
        if wal.failed() {
            break;
        }
    }
    wait(&mut acks, &mut pasts);
    pasts
}

fn wait(acks: &mut Vec<(usize, usize, bool, Ack)>, pasts: &mut [Past]) {
    for (group, call, unacknowledged, ack) in acks.drain(..) {
        if ack.wait().is_ok() && !unacknowledged {
            pasts[group].acknowledged = call;
        }
    }
}

/// Opens what a crash left, checks it, goes on with it, and checks again.
fn check(disk: &MemoryDisk, config: &WalConfig, pasts: &[Past], durable: bool, context: &str) {
    let (wal, _) = open_with(disk, config.clone()).unwrap_or_else(|error| panic!("{context}: {error}"));
    let mut models = Vec::new();
    for (id, past) in (0..).zip(pasts) {
        let least = if durable { past.acknowledged } else { 0 };
        let at = past.invariant_a_prefix_with_all_that_was_acknowledged(&wal, id, least, context);
        models.push(past.states[at].clone());
    }
    // Frames as long as the lost ones, so that stale frames behind them would fit.
    for _ in 0..3 {
        for (id, model) in (0..).zip(&mut models) {
            let (done, ack) = Ack::new();
            model.call(&Call::Append { back: 0, count: 1, bytes: 300 }, &wal.group(GroupId(id)), done);
            ack.wait().unwrap();
        }
    }
    drop(wal);
    let (wal, recovery) =
        open_with(disk, config.clone()).unwrap_or_else(|error| panic!("{context}, again: {error}"));
    assert_eq!(recovery.repaired, None, "{context}: a clean stop leaves nothing to repair");
    for (id, model) in (0..).zip(&models) {
        assert_eq!(model.differs(&wal.group(GroupId(id))), None, "{context}: group {id} went on");
    }
}

fn histories(seed: u8, calls: usize) -> Vec<(u64, Call)> {
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[seed; 32]);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    any_history(calls..calls + 1, GROUPS).new_tree(&mut runner).unwrap().current()
}

fn crash_everywhere(mode: SyncMode, seeds: std::ops::Range<u8>, calls: usize, config: &WalConfig) {
    let mut crashes = 0;
    for seed in seeds {
        let history = histories(seed, calls);
        for wait_every in [1, 7] {
            for operations in 0.. {
                let disk = MemoryDisk::default();
                disk.inject(Fault::Halt { operations });
                let pasts = run(&disk, config.clone(), mode, &history, wait_every);
                let all = disk.operations() < operations;
                let context =
                    format!("seed {seed}, {mode:?}, waits every {wait_every}, crash at {operations}");
                // A killed process loses nothing that it wrote.
                check(&disk.kill(), config, &pasts, true, &format!("{context}, killed"));
                let durable = mode == SyncMode::Before;
                for fate in [0, 1, operations + 2, operations * 31 + 7] {
                    let context = format!("{context}, fate {fate}");
                    check(&disk.power_cut(fate), config, &pasts, durable, &context);
                    // And power fails once more, during the start that follows.
                    let second = disk.power_cut(fate);
                    second.inject(Fault::Halt { operations: fate % 9 });
                    drop(open_with(&second, config.clone()));
                    check(&second.power_cut(fate + 1), config, &pasts, durable, &format!("{context}, twice"));
                }
                crashes += 1;
                if all {
                    break;
                }
            }
        }
    }
    assert!(crashes > 100, "only {crashes} crashes");
}

#[test]
fn synced_changes_survive_a_crash_at_every_step() {
    crash_everywhere(SyncMode::Before, 0..4, 60, &small());
}

#[test]
fn lazy_changes_survive_kill_and_stay_a_prefix_after_loss_of_power() {
    // Syncs happen in between, at moments that differ from run to run.
    let config = WalConfig { lazy_sync_interval: Duration::from_micros(300), ..small() };
    crash_everywhere(SyncMode::Lazy, 4..7, 60, &config);
}

#[test]
fn votes_survive_in_every_mode() {
    for mode in [SyncMode::Before, SyncMode::Lazy, SyncMode::Never] {
        let disk = MemoryDisk::default();
        let (wal, _) = open_with(&disk, small()).unwrap();
        let log = wal.group(GroupId(1));
        log.set_sync(mode);
        let mut model = Model::default();
        for call in [Call::Append { back: 0, count: 3, bytes: 10 }, Call::Vote] {
            let (done, ack) = Ack::new();
            model.call(&call, &log, done);
            ack.wait().unwrap();
        }
        let left = disk.power_cut(0);
        let (wal, _) = open_with(&left, small()).unwrap();
        assert_eq!(model.differs(&wal.group(GroupId(1))), None, "{mode:?}");
    }
}
