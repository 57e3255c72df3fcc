//! The task that owns the batch: it runs step after step and sleeps until each one ends.
//!
//! Commands are taken at any time, also while a step is under way; they change what the next step
//! does, as they do in vLLM. A step's tokens are delivered when it ends.
//!
//! Steps are paced against their own schedule rather than the clock: timers round up to a
//! millisecond, and a step that is late must not make all later ones late. More than
//! [`MAX_LAG`] behind, the machine is too slow for this pace, and the lost time is given up.

mod quiesce;

use std::{collections::HashMap, sync::Arc, time::Duration};

use kvwarden_policy::simulation::engine::{Batch, FinishReason, Finished, Key, Request, Step};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep_until},
};

use super::{
    faults::{self, Failure, Faults},
    handle::{Answer, Command, Control, End, Progress, Quiet, Submission},
    stats::Board,
};

/// How far the schedule may lie behind the clock.
const MAX_LAG: Duration = Duration::from_millis(50);

/// One sequence and whom to tell about it.
#[derive(Debug)]
struct Live {
    request: u64,
    choice: usize,
    arrived: Instant,
    progress: Arc<watch::Sender<Progress>>,
}

/// Whether steps are run.
#[derive(Debug)]
enum Gate {
    Open,
    /// Until what is in flight has ended.
    Draining(Vec<(Quiet, oneshot::Sender<Answer>)>),
    Closed,
}

#[derive(Debug)]
pub(super) struct Engine {
    batch: Batch,
    live: HashMap<Key, Live>,
    requests: HashMap<u64, Vec<Key>>,
    gate: Gate,
    /// Came while the gate was not open; in neither running nor waiting, as in vLLM.
    held: Vec<(Submission, Instant)>,
    board: Board,
    faults: Faults,
    submitted: u64,
    /// Orders that get no answer, by a fault.
    unanswered: Vec<oneshot::Sender<Answer>>,
    /// The request in the middle of which something fails.
    fatal: Option<(u64, Failure)>,
}

// === impl Engine ===

impl Engine {
    pub(super) fn new(batch: Batch, board: Board, faults: Faults) -> Self {
        Self {
            batch,
            live: HashMap::new(),
            requests: HashMap::new(),
            gate: Gate::Open,
            held: Vec::new(),
            board,
            faults,
            submitted: 0,
            unanswered: Vec::new(),
            fatal: None,
        }
    }

    /// Runs until all handles are gone.
    pub(super) async fn run(mut self, mut commands: mpsc::UnboundedReceiver<Command>) {
        let mut next = Instant::now();
        loop {
            while let Ok(command) = commands.try_recv() {
                self.handle(command);
            }
            let now = Instant::now();
            let start = if next + MAX_LAG < now { now } else { next };
            let Some(step) = self.start_step(start) else {
                let Some(command) = commands.recv().await else {
                    return;
                };
                self.handle(command);
                // An idle engine starts at once.
                next = Instant::now();
                continue;
            };
            let end = start + step.duration;
            loop {
                tokio::select! {
                    biased;
                    () = sleep_until(end) => break,
                    Some(command) = commands.recv() => self.handle(command),
                }
            }
            next = end;
            self.deliver(&step, end);
            self.finish_draining();
            if self.failed() == Some(Failure::Hang) {
                std::future::pending::<()>().await;
            }
            // A late step does not sleep; handlers share the thread and must get their turn.
            tokio::task::yield_now().await;
        }
    }

    fn start_step(&mut self, start: Instant) -> Option<Step> {
        if matches!(self.gate, Gate::Closed) {
            return None;
        }
        let step = self.batch.step(start.into_std());
        self.report(step.as_ref());
        step
    }

    fn report(&self, step: Option<&Step>) {
        let mut stats = self.board.lock();
        stats.running = self.batch.running() as u64;
        stats.waiting = self.batch.waiting() as u64;
        stats.kv_used = self.batch.kv_used();
        let Some(step) = step else {
            return;
        };
        stats.iteration_tokens.observe(step.load.tokens());
        stats.preemptions += step.preempted.len() as u64;
        for admission in step.admitted.iter().filter(|a| !a.resumed) {
            stats.queue_time.observe_duration(admission.waited);
            stats.prefix_queries += u64::from(admission.prefill_tokens);
            stats.prefix_hits += u64::from(admission.cached_tokens);
            stats.prompt_tokens += u64::from(admission.prefill_tokens);
            stats.prompt_tokens_cached += u64::from(admission.cached_tokens);
        }
    }

    fn handle(&mut self, command: Command) {
        match command {
            Command::Submit(submission) => match self.gate {
                Gate::Open => self.submit(submission, Instant::now()),
                Gate::Draining(_) | Gate::Closed => self.held.push((submission, Instant::now())),
            },
            Command::Abort(id) => {
                self.held.retain(|(submission, _)| submission.id != id);
                self.abort(id);
                self.finish_draining();
                self.report(None);
            }
            Command::Control(control, reply) => self.control(control, reply),
        }
    }

    fn submit(&mut self, submission: Submission, arrived: Instant) {
        self.submitted += 1;
        if let Some(failure) = self.faults.during(self.submitted) {
            self.fatal = Some((submission.id, failure));
        }
        let progress = Arc::new(submission.progress);
        let garbled = self.board.lock().memory.weights_lost;
        progress.send_if_modified(|progress| {
            progress.garbled = garbled;
            false
        });
        let mut keys = Vec::with_capacity(submission.choices.len());
        for (choice, wanted) in submission.choices.into_iter().enumerate() {
            let request = Request {
                prompt: wanted.prompt,
                max_tokens: wanted.max_tokens,
                limit: wanted.limit,
                priority: submission.priority,
            };
            // Handlers refuse what doesn't fit with a better message than could be made here.
            let Ok(key) = self.batch.submit(arrived.into_std(), request) else {
                progress.send_modify(|p| p.choices[choice].end = Some(End::Aborted));
                continue;
            };
            keys.push(key);
            let live = Live {
                request: submission.id,
                choice,
                arrived,
                progress: Arc::clone(&progress),
            };
            self.live.insert(key, live);
        }
        self.requests.insert(submission.id, keys);
        self.report(None);
    }

    fn deliver(&mut self, step: &Step, end: Instant) {
        for key in self.batch.decoding() {
            // Both are missing only for what was aborted during the step.
            if let (Some(live), Some(generated)) = (self.live.get(&key), self.batch.generated(key))
            {
                live.progress
                    .send_modify(|p| p.choices[live.choice].generated = generated);
            }
        }
        let board = self.board.clone();
        let mut stats = board.lock();
        stats.generation_tokens += step.new_tokens;
        for key in &step.first_tokens {
            if let Some(live) = self.live.get(key) {
                let delay = end.saturating_duration_since(live.arrived);
                stats.first_token.observe_duration(delay);
            }
        }
        for finished in &step.finished {
            match finished.reason {
                FinishReason::Stop => stats.finished_stop += 1,
                FinishReason::Length => stats.finished_length += 1,
            }
            self.finish(finished);
        }
        drop(stats);
        if let Some(Failure::Crash { code }) = self.failed() {
            faults::crash(code);
        }
    }

    fn finish(&mut self, finished: &Finished) {
        let Some(live) = self.live.remove(&finished.key) else {
            return;
        };
        live.progress.send_modify(|progress| {
            let choice = &mut progress.choices[live.choice];
            choice.generated = finished.generated;
            choice.cached_tokens = finished.cached_tokens;
            choice.end = Some(End::Finished(finished.reason));
        });
        if let Some(keys) = self.requests.get_mut(&live.request) {
            keys.retain(|key| *key != finished.key);
            if keys.is_empty() {
                self.requests.remove(&live.request);
            }
        }
    }

    fn abort(&mut self, id: u64) {
        for key in self.requests.remove(&id).unwrap_or_default() {
            let Some(live) = self.live.remove(&key) else {
                continue;
            };
            // `None`: its last step is under way, and its tokens go nowhere now.
            let generated = self.batch.abort(key);
            live.progress.send_modify(|progress| {
                let choice = &mut progress.choices[live.choice];
                choice.generated = generated.unwrap_or(choice.generated);
                choice.end = Some(End::Aborted);
            });
            self.board.lock().finished_abort += u64::from(generated.is_some());
        }
    }

    /// Something fails in the middle of a request: when it has two tokens, so that its client has
    /// seen one, or has ended before.
    fn failed(&self) -> Option<Failure> {
        let (id, failure) = self.fatal?;
        let middle = self.requests.get(&id).is_none_or(|keys| {
            keys.iter()
                .any(|key| self.batch.generated(*key).is_some_and(|tokens| tokens >= 2))
        });
        middle.then_some(failure)
    }
}
