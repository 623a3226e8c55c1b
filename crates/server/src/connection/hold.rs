//! Holding: what cannot run now, and when it is looked at again.

use super::*;

/// While held, the leader is looked for at least this often.
pub(super) const HOLD_INTERVAL: Duration = Duration::from_millis(25);

/// Something that waits for everything before it to be answered.
pub(super) enum Deferred {
    /// A batch to be routed, perhaps again.
    Batch { batch: Batch, terms: Terms },
    /// A request to be looked at again.
    Request { args: Vec<Vec<u8>>, muted: bool },
    /// A reply that is ready but stands behind something else that waits.
    Reply(Box<RespSink>),
}

impl Deferred {
    /// Bytes that it takes.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Deferred::Batch { batch, .. } => batch.size_bytes(),
            Deferred::Request { args, .. } => args.iter().map(Vec::len).sum(),
            Deferred::Reply(out) => out.bytes().len(),
        }
    }
}

impl<E: Engine> Connection<E> {
    /// Whether what is deferred may be looked at again.
    pub(super) fn may_take_up_deferred(&self) -> bool {
        !self.deferred.is_empty() && self.queue.is_empty() && self.hold.is_none() && self.may_take_replies()
    }

    /// Routes what is deferred once everything before it is answered and there is news about who leads.
    pub(super) async fn take_up_deferred(&mut self) {
        if !self.may_take_up_deferred() {
            return;
        }
        if !self.draining && self.is_out_of_patience() {
            // Before it is routed once more: a leader without a majority takes a batch, and gives it back only later.
            self.give_up_hold();
        }
        self.gated = false;
        let mut rest = std::mem::take(&mut self.deferred);
        while self.deferred.is_empty()
            && let Some(next) = rest.pop_front()
        {
            match next {
                Deferred::Reply(out) if self.queue.is_empty() && self.open.is_none() => {
                    self.take_replies(out)
                }
                Deferred::Reply(out) => {
                    self.close_batch().await;
                    match self.deferred.is_empty() {
                        true => self.queue.push_back(Dispatched::Done { out, ran: false }),
                        false => self.deferred.push_back(Deferred::Reply(out)),
                    }
                }
                Deferred::Request { args, muted } => {
                    let args: SmallVec<[&[u8]; 8]> = args.iter().map(Vec::as_slice).collect();
                    self.session.resume(muted);
                    self.look(&args).await;
                }
                Deferred::Batch { batch, terms } if !self.draining && self.gate_holds(&batch).is_some() => {
                    self.close_batch().await;
                    let until = self.gate_holds(&batch);
                    self.defer_batch(batch, terms);
                    if let Some(until) = until
                        && self.hold.is_none()
                    {
                        self.hold_by_gate(until);
                    }
                }
                Deferred::Batch { batch, terms } => {
                    for (command, args) in batch.commands() {
                        if !self.may_take_replies() {
                            // The client has to take some before more of them are made.
                            self.close_batch().await;
                            self.defer_command(command, &args, terms);
                            continue;
                        }
                        self.run_command(command, &args, terms).await;
                    }
                }
            }
        }
        self.close_batch().await;
        self.deferred.append(&mut rest);
        if self.hold.is_some() && (self.draining || self.is_out_of_patience()) {
            self.give_up_hold();
        }
        if self.hold.is_none() && self.deferred.is_empty() && self.queue.is_empty() {
            self.held_since = None;
        }
    }

    pub(super) fn is_out_of_patience(&self) -> bool {
        let settings = &self.shared.port.settings;
        let mut patience = settings.failover_hold();
        if self.is_cut_off() {
            // Nobody is elected here, and others may serve the client already: it is not to wait longer than for an election.
            patience = patience.min(Duration::from_millis(settings.election_timeout_ms));
        }
        self.held_since.is_some_and(|since| since.elapsed() >= patience)
    }

    /// Whether this server does not hear enough others to have a leader of its shard among them.
    fn is_cut_off(&self) -> bool {
        let (Some(view), Some(engine)) = (&self.view, &self.engine) else { return false };
        view.topology.replica(engine.id()).is_some_and(|(shard, _)| view.is_cut_off_from(shard))
    }

    /// The client was held for as long as it may be: what could not run is answered.
    pub(super) fn give_up_hold(&mut self) {
        self.hold = None;
        self.held_since = None;
        // Later requests get a hold of their own; they stand behind what is answered here.
        while let Some(Deferred::Batch { .. } | Deferred::Reply(_)) = self.deferred.front() {
            let out = match self.deferred.pop_front() {
                Some(Deferred::Batch { batch, terms }) => self.refuse(&batch, dispatch::CLUSTER_DOWN, terms),
                Some(Deferred::Reply(out)) => out,
                _ => break,
            };
            match self.queue.is_empty() {
                true => self.take_replies(out),
                false => self.queue.push_back(Dispatched::Done { out, ran: false }),
            }
        }
    }

    /// Waits for a leader before anything is routed again. The client waits since `since`, unless it is held already.
    pub(super) fn hold(&mut self, since: Instant) {
        let Some(engine) = &self.engine else { return };
        if self.held_since.is_none() {
            self.held_since = Some(since);
            self.shared.port.stats.holds.fetch_add(1, Ordering::Relaxed);
        }
        let change = engine.leadership_changes();
        self.hold = Some(Box::pin(async move {
            let _ = tokio::time::timeout(HOLD_INTERVAL, change).await;
        }));
    }

    /// A request that the gate holds: it is looked at again when the gate opens.
    pub(super) async fn hold_request(&mut self, args: Args<'_>, until: Instant) {
        self.close_batch().await;
        if self.draining && self.deferred.is_empty() {
            // The port closes: whoever is held is told so.
            count_error(&self.shared.port.stats, dispatch::CLUSTER_DOWN.as_bytes());
            return self.reply(|session, _, out| {
                if !session.is_muted() {
                    out.error(dispatch::CLUSTER_DOWN.as_bytes());
                }
            });
        }
        let first = self.deferred.is_empty();
        self.defer_request(args);
        if first {
            self.hold_by_gate(until);
        }
    }

    fn hold_by_gate(&mut self, until: Instant) {
        self.gated = true;
        self.hold = Some(Box::pin(self.shared.port.gate.changed(until)));
    }

    /// Until when the gate holds some command of a batch.
    fn gate_holds(&self, batch: &Batch) -> Option<Instant> {
        batch.commands().find_map(|(command, _)| self.shared.port.gate.holds(Some(command)))
    }

    pub(super) fn defer_batch(&mut self, batch: Batch, terms: Terms) {
        self.deferred.push_back(Deferred::Batch { batch, terms: Terms { way: Way::Leads, ..terms } });
    }

    pub(super) fn defer_command(&mut self, command: &'static Command, args: Args<'_>, terms: Terms) {
        let terms = Terms { way: Way::Leads, ..terms };
        if let Some(Deferred::Batch { batch, terms: same }) = self.deferred.back_mut()
            && *same == terms
        {
            return batch.push(command, terms.db, args.iter().copied());
        }
        let mut batch = terms.batch();
        batch.push(command, terms.db, args.iter().copied());
        self.deferred.push_back(Deferred::Batch { batch, terms });
    }

    pub(super) fn defer_request(&mut self, args: Args<'_>) {
        let args = args.iter().map(|arg| arg.to_vec()).collect();
        self.deferred.push_back(Deferred::Request { args, muted: self.session.is_muted() });
    }
}
