//! Random histories against the model, with restarts in between.

use kvorum_raft::{
    disk::MemoryDisk,
    wal::{GroupId, SyncMode, Wal, WalConfig},
};
use proptest::prelude::*;

use crate::{
    model::{Model, any_history},
    support::{Ack, open, open_with, small},
};

const GROUPS: u64 = 4;

fn check(wal: &Wal, models: &[Model]) {
    for (id, model) in (0..).zip(models) {
        let log = wal.group(GroupId(id));
        assert_eq!(model.differs(&log), None, "group {id} after {} calls", model.calls);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn a_log_is_what_was_called_after_any_number_of_restarts(
        parts in prop::collection::vec((any_history(0..60, GROUPS), any::<bool>()), 1..4),
        lazy in any::<bool>(),
    ) {
        let disk = MemoryDisk::default();
        let mut models = vec![Model::default(); GROUPS as usize];
        for (history, wait) in parts {
            let wal = open(&disk);
            check(&wal, &models);
            let logs: Vec<_> = (0..GROUPS).map(|id| wal.group(GroupId(id))).collect();
            logs.iter().for_each(|log| log.set_sync(if lazy { SyncMode::Lazy } else { SyncMode::Before }));
            let mut acks = Vec::new();
            for (group, call) in &history {
                let (done, ack) = Ack::new();
                models[*group as usize].call(call, &logs[*group as usize], done);
                if wait {
                    ack.wait().unwrap();
                } else {
                    acks.push(ack);
                }
            }
            // Reads agree whether the writer has caught up or not.
            check(&wal, &models);
            acks.into_iter().for_each(|ack| ack.wait().unwrap());
            check(&wal, &models);
        }
        // The committed positions were left before the clean stop, so they are there.
        let wal = open(&disk);
        check(&wal, &models);
        for (id, model) in (0..).zip(&models) {
            assert_eq!(Model::committed_call(&wal.group(GroupId(id))), model.committed);
        }
    }
}

#[test]
fn segments_are_dropped_recycled_and_not_pinned_by_an_idle_group() {
    let disk = MemoryDisk::default();
    let wal = open(&disk);
    let (idle, busy) = (wal.group(GroupId(0)), wal.group(GroupId(1)));
    let mut idle_model = Model::default();
    let mut busy_model = Model::default();
    let call = |model: &mut Model, log: &_, call| {
        let (done, ack) = Ack::new();
        model.call(&call, log, done);
        ack.wait().unwrap();
    };
    use crate::model::Call::{Append, Purge, Vote};
    call(&mut idle_model, &idle, Vote);
    call(&mut idle_model, &idle, Append { back: 0, count: 3, bytes: 100 });
    for _ in 0..400 {
        call(&mut busy_model, &busy, Append { back: 0, count: 2, bytes: 500 });
        call(&mut busy_model, &busy, Purge { count: 1 });
    }
    let stats = wal.stats();
    // 400 kB went through segments of 8 KiB: more than 60 of them.
    assert!(stats.dropped_segments > 50, "{stats:?}");
    assert!(stats.copied_entries >= 3, "{stats:?}");
    assert!(stats.segments <= 8, "{stats:?}");
    assert_eq!(idle_model.differs(&idle), None);
    assert_eq!(busy_model.differs(&busy), None);
    drop((idle, busy, wal));
    let (wal, recovery) = open_with(&disk, WalConfig { tail_bytes: 0, ..small() }).unwrap();
    assert_eq!(recovery.repaired, None);
    assert_eq!(idle_model.differs(&wal.group(GroupId(0))), None);
    assert_eq!(busy_model.differs(&wal.group(GroupId(1))), None);
}
