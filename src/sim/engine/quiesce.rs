//! Pausing, sleeping and waking: what vLLM's development endpoints do to the engine.

use std::mem;

use tokio::sync::oneshot;

use super::{Answer, Control, Engine, Gate, Quiet};
use crate::sim::{handle::InFlight, memory::Weights};

impl Engine {
    pub(super) fn control(&mut self, control: Control, reply: oneshot::Sender<Answer>) {
        let answer = match control {
            Control::Quiesce(quiet, InFlight::Wait) => {
                match &mut self.gate {
                    Gate::Draining(others) => others.push((quiet, reply)),
                    Gate::Open | Gate::Closed => self.gate = Gate::Draining(vec![(quiet, reply)]),
                }
                self.finish_draining();
                return;
            }
            Control::Quiesce(quiet, InFlight::Abort) => {
                self.abort_all();
                self.finish_draining();
                self.close(quiet)
            }
            Control::Quiesce(quiet, InFlight::Keep) => self.close(quiet),
            Control::Wake { .. } if self.faults.fault_wake_hangs => {
                self.unanswered.push(reply);
                return;
            }
            Control::Wake { weights, kv } => self.wake(weights, kv),
            Control::ReleaseKv => self.release_kv(),
            Control::Resume => self.reopen(),
            Control::ReloadWeights => self.reload_weights(),
            Control::ResetPrefixCache => match self.batch.reset_prefix_cache() {
                Ok(()) => Answer::Done,
                Err(kvwarden_policy::simulation::engine::InUse) => Answer::Busy,
            },
            Control::Shutdown => {
                self.abort_all();
                self.close(Quiet::Pause)
            }
        };
        self.report(None);
        // Whoever asked may have hung up.
        let _ = reply.send(answer);
    }

    /// Once nothing is in flight any more, does what was waiting for that.
    pub(super) fn finish_draining(&mut self) {
        if !self.batch.is_idle() {
            return;
        }
        if let Gate::Draining(waiting) = &mut self.gate {
            for (quiet, reply) in mem::take(waiting) {
                let answer = self.close(quiet);
                let _ = reply.send(answer);
            }
            self.report(None);
        }
    }

    fn close(&mut self, quiet: Quiet) -> Answer {
        if let Gate::Draining(overtaken) = mem::replace(&mut self.gate, Gate::Closed) {
            for (_, reply) in overtaken {
                let _ = reply.send(Answer::Done);
            }
        }
        let mut stats = self.board.lock();
        match quiet {
            Quiet::Pause => {}
            Quiet::Sleep(level) => {
                stats.memory.sleep(level);
                self.batch.drop_kv();
            }
        }
        Answer::Done
    }

    /// As vLLM, which wants to be paused for it and to have all its memory.
    fn release_kv(&mut self) -> Answer {
        let mut stats = self.board.lock();
        let is_paused = matches!(self.gate, Gate::Closed) && self.batch.is_idle();
        if !is_paused || !stats.memory.is_complete() {
            return Answer::Busy;
        }
        stats.memory.kv_resident = false;
        self.batch.drop_kv();
        Answer::Done
    }

    fn wake(&mut self, weights: bool, kv: bool) -> Answer {
        let mut stats = self.board.lock();
        stats.memory.weights_lost |= self.faults.fault_wake_garbles;
        if weights {
            stats.memory.weights = Weights::Resident;
        }
        stats.memory.kv_resident |= kv;
        drop(stats);
        self.reopen()
    }

    /// Works again, unless some of its memory is still away.
    fn reopen(&mut self) -> Answer {
        if self.board.lock().memory.is_complete() {
            self.gate = Gate::Open;
            for (submission, arrived) in mem::take(&mut self.held) {
                self.submit(submission, arrived);
            }
        }
        Answer::Done
    }

    fn reload_weights(&mut self) -> Answer {
        let mut stats = self.board.lock();
        if stats.memory.weights != Weights::Resident {
            return Answer::Busy;
        }
        stats.memory.weights_lost = false;
        Answer::Done
    }

    fn abort_all(&mut self) {
        let ids: Vec<u64> = self.requests.keys().copied().collect();
        for id in ids {
            self.abort(id);
        }
        for (submission, _) in mem::take(&mut self.held) {
            submission.progress.send_modify(|progress| {
                for choice in &mut progress.choices {
                    choice.end = Some(super::End::Aborted);
                }
            });
        }
    }
}
