//! The sync that follows lazily, on a thread of its own: it may take tens of milliseconds when much was written, and the writer
//! goes on meanwhile.
//!
//! One at a time, and never beside a sync of the writer: Linux reports a failed writeback to one caller only, so the other one
//! would take lost data for synced.

use std::{
    io,
    sync::{
        Arc,
        mpsc::{Receiver, Sender, channel},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use super::group::Shared;
use crate::{clock::Environment, disk::DiskFile};

/// A sync that ended well: what is on disk now, and how long it took.
pub(super) struct Synced {
    pub(super) sequence: u64,
    pub(super) took: Duration,
}

struct Job {
    file: Arc<dyn DiskFile>,
    sequence: u64,
}

/// The thread and whether it is busy. In a simulation there is none: a sync ends as soon as it begins.
pub(super) struct LazySync {
    jobs: Option<Sender<Job>>,
    results: Receiver<io::Result<Synced>>,
    thread: Option<JoinHandle<()>>,
    busy: bool,
    /// In place of the thread.
    inline: Option<Sender<io::Result<Synced>>>,
}

impl Job {
    fn sync(self, environment: &Environment) -> io::Result<Synced> {
        let begun = environment.now();
        let Job { file, sequence } = self;
        // A file that somebody holds is not recycled when its segment is dropped: it goes with the job.
        file.sync_data().map(|()| Synced { sequence, took: environment.now().saturating_sub(begun) })
    }
}

impl LazySync {
    pub(super) fn start(shared: Arc<Shared>) -> io::Result<LazySync> {
        let (jobs, waiting) = channel::<Job>();
        let (finished, results) = channel();
        if shared.environment.is_simulated() {
            let inline = Some(finished);
            return Ok(LazySync { jobs: Some(jobs), results, thread: None, busy: false, inline });
        }
        let work = move || {
            for job in waiting {
                if finished.send(job.sync(&shared.environment)).is_err() {
                    return;
                }
                shared.queue.nudge();
            }
        };
        let thread = thread::Builder::new().name("kvorum-wal-sync".to_owned()).spawn(work)?;
        Ok(LazySync { jobs: Some(jobs), results, thread: Some(thread), busy: false, inline: None })
    }

    pub(super) fn is_busy(&self) -> bool {
        self.busy
    }

    /// Starts a sync of everything up to `sequence`, which ends in `file`; the thread must not be busy.
    pub(super) fn begin(
        &mut self,
        environment: &Environment,
        file: Arc<dyn DiskFile>,
        sequence: u64,
    ) -> io::Result<()> {
        debug_assert!(!self.busy, "one sync at a time");
        if let Some(inline) = &self.inline {
            self.busy = true;
            return inline.send(Job { file, sequence }.sync(environment)).map_err(|_| gone());
        }
        let jobs = self.jobs.as_ref().ok_or_else(gone)?;
        jobs.send(Job { file, sequence }).map_err(|_| gone())?;
        self.busy = true;
        Ok(())
    }

    /// What a sync that ended brought, if there is one.
    pub(super) fn poll(&mut self) -> io::Result<Option<Synced>> {
        match self.results.try_recv() {
            Ok(result) => {
                self.busy = false;
                result.map(Some)
            }
            Err(_) => Ok(None),
        }
    }

    /// Waits for the sync that is under way, if there is one.
    pub(super) fn wait(&mut self) -> io::Result<Option<Synced>> {
        if !self.busy {
            return Ok(None);
        }
        self.busy = false;
        self.results.recv().map_err(|_| gone())?.map(Some)
    }
}

impl Drop for LazySync {
    fn drop(&mut self) {
        self.jobs = None;
        // It ends with the sync it is in; a panic there has been seen as a missing result.
        let _ended = self.thread.take().map(JoinHandle::join);
    }
}

fn gone() -> io::Error {
    io::Error::other("the thread that syncs lazily has ended")
}
