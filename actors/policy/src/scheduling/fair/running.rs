//! What happens to a request inside the engine: its first token, its others, its end.

use std::time::Instant;

use super::{Dispatched, FairCore, Job, window::Load};
use crate::{
    cost::Usage,
    scheduling::{settings::Mutant, types::Outcome},
};

impl FairCore {
    /// The first token of a request came.
    pub(in crate::scheduling) fn first_token(&mut self, slot: u32, now: Instant) {
        let job = *self.job(slot);
        let Some(run) = job.run.filter(|run| run.counted.is_none()) else {
            return;
        };
        let took = now.saturating_duration_since(run.started);
        self.pace.first_token(job.prompt_tokens, took, now);
        self.tag_time = self.tag_time.max(run.tag);
        self.acknowledge(slot);
        if let Some(run) = &mut self.jobs[slot as usize].run {
            run.counted = Some((now, job.sequences));
        }
    }

    /// The prefill of a request is over.
    pub(in crate::scheduling) fn acknowledge(&mut self, slot: u32) {
        let job = *self.job(slot);
        let Some(run) = job.run.filter(|run| !run.is_acked) else {
            return;
        };
        let load = Load {
            unacked: 0,
            guests: 0,
            ..run.load
        };
        self.tree.reload(job.leaf, run.load, load);
        self.jobs[slot as usize].run = Some(Dispatched {
            load,
            is_acked: true,
            ..run
        });
    }

    /// So many tokens have come so far. What exceeds the estimate is charged at once: a tenant whose
    /// answers grow longer than they were would otherwise be ahead by all of it.
    pub(in crate::scheduling) fn streamed(&mut self, slot: u32, tokens: u64, now: Instant) {
        let job = *self.job(slot);
        let Some(mut run) = job.run else {
            return;
        };
        if let Some((when, before)) = run.counted
            && tokens > before
        {
            let took = now.saturating_duration_since(when);
            self.pace.decoded(job.sequences, took, tokens - before);
            run.counted = Some((now, tokens));
        }
        let unreserved = tokens.saturating_sub(run.reserved);
        if unreserved > 0 {
            let load = Load {
                kv: run.load.kv + unreserved,
                ..run.load
            };
            self.tree.reload(job.leaf, run.load, load);
            run.load = load;
            run.reserved = tokens;
        }
        let unpaid = tokens.saturating_sub(run.paid);
        if unpaid > 0 && !self.settings.lacks(Mutant::TrueUp) {
            let more = self.settings.price.output(unpaid);
            self.tree.charge(job.leaf, more);
            run.charged += more;
            run.paid = tokens;
        }
        self.jobs[slot as usize].run = Some(run);
    }

    /// A running request is over: the signed difference to what it really cost is settled.
    pub(in crate::scheduling) fn finish(&mut self, slot: u32, outcome: &Outcome, now: Instant) {
        let job = *self.job(slot);
        let Some(run) = self.jobs[slot as usize].run.take() else {
            return;
        };
        let price = self.settings.price;
        let cost = match outcome {
            Outcome::Completed(usage) => {
                self.tag_time = self.tag_time.max(run.tag);
                self.learn(&job, usage);
                if let Some((when, before)) = run.counted {
                    let took = now.saturating_duration_since(when);
                    let tokens = usage.completion_tokens.saturating_sub(before);
                    self.pace.decoded(job.sequences, took, tokens);
                }
                price.usage(usage)
            }
            Outcome::Cancelled { generated } => {
                price.prompt(job.prompt_tokens) + price.output(*generated)
            }
            Outcome::FailedBeforeFirstToken => 0,
        };
        if !(self.settings.lacks(Mutant::TrueUp) && cost > run.charged) {
            self.tree.charge(job.leaf, cost - run.charged);
        }
        if *outcome != Outcome::FailedBeforeFirstToken {
            let tenant = self.tree.tenant_of(job.leaf);
            self.tree.node_mut(tenant).usual.learn(cost);
        }
        self.tree.stop(job.leaf, run.load);
    }

    fn learn(&mut self, job: &Job, usage: &Usage) {
        let each = usage.completion_tokens.div_ceil(job.sequences);
        self.lengths.learn(each);
        let tenant = self.tree.tenant_of(job.leaf);
        let tenant = self.tree.node_mut(tenant);
        tenant.lengths.learn(each);
        tenant.uncached.learn(usage);
    }
}
