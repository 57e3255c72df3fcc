//! The loop: arrivals, the scheduler, the way to the engine, its steps, and what comes back.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use super::{Arm, Report, Workload, measure::WINDOW, traffic::Request};
use crate::{
    bucket::{TokenBucket, Verdict},
    cost::Usage,
    scheduling::{
        Arrival, Bounds, Capacity, FairSettings, Group, Key, Outcome, Scheduler, Settings,
        TenantBounds, settings::Mutant, tests::epoch,
    },
    simulation::engine::{self, Batch, Policy, Prompt, Step},
};

const TICK: Duration = Duration::from_millis(100);

/// A request in the engine.
#[derive(Clone, Copy)]
struct Running {
    request: usize,
    key: Key,
    counted: u32,
    is_acked: bool,
}

pub(super) struct Sim<'a> {
    arm: Arm,
    workload: &'a Workload,
    start: Instant,
    requests: Vec<Request>,
    scheduler: Scheduler<usize>,
    buckets: Vec<TokenBucket>,
    engine: Batch,
    /// On their way to the engine.
    sent: VecDeque<(Duration, usize, Key, i64)>,
    running: BTreeMap<engine::Key, Running>,
    step: Option<(Duration, Step)>,
    /// What the engine's own gauge says: who was left waiting by the latest step.
    left_waiting: usize,
    first_token: Vec<Option<Duration>>,
    /// It is asked once a second how many requests wait inside it.
    pub(super) tells_waiting: bool,
    report: Report,
}

/// The settings of an arm before that preset.
pub(super) fn settings(arm: Arm, workload: &Workload) -> Settings {
    let preset = &workload.preset;
    let capacity = Capacity::of_engine(
        u64::from(preset.max_num_seqs),
        u64::from(preset.max_num_batched_tokens),
        Some(u64::from(preset.kv_tokens)),
    );
    Settings {
        discipline: arm.discipline(),
        bounds: Bounds {
            requests: 1_000_000,
            bytes: u64::MAX,
        },
        max_in_flight: match arm {
            // Python KVWarden's drr holds back what the engine has no place for.
            Arm::Drr => preset.max_num_seqs as usize,
            Arm::Solo | Arm::Fifo | Arm::Bucket | Arm::Fair => usize::MAX,
        },
        fair: FairSettings::new(capacity),
    }
}

// === impl Sim ===

impl<'a> Sim<'a> {
    pub(super) fn new(arm: Arm, workload: &'a Workload, seed: u64) -> Self {
        Self::with(arm, workload, seed, settings(arm, workload), None)
    }

    pub(super) fn with(
        arm: Arm,
        workload: &'a Workload,
        seed: u64,
        mut settings: Settings,
        mutant: Option<Mutant>,
    ) -> Self {
        settings.fair.mutant = mutant;
        let is_fair = arm == Arm::Fair;
        let policy = if is_fair {
            Policy::Priority
        } else {
            Policy::Fcfs
        };
        let mut limits = engine::Limits::of_preset(&workload.preset, policy);
        if is_fair {
            let sequences = settings.fair.capacity.engine_sequences();
            limits.max_num_seqs = u32::try_from(sequences).unwrap();
            let chunk = settings.fair.capacity.chunk_tokens;
            limits.long_prefill_token_threshold = u32::try_from(chunk).unwrap();
        }
        let start = epoch();
        let only = (arm == Arm::Solo).then_some("quiet");
        let requests = workload.requests(only, seed);
        let buckets = workload.sources.iter();
        Self {
            arm,
            workload,
            start,
            scheduler: Scheduler::new(&settings),
            buckets: buckets.map(|_| TokenBucket::full(600, 10, start)).collect(),
            engine: Batch::new(limits, workload.preset.model).unwrap(),
            sent: VecDeque::new(),
            running: BTreeMap::new(),
            step: None,
            left_waiting: 0,
            first_token: vec![None; requests.len()],
            requests,
            report: Report::default(),
            tells_waiting: false,
        }
    }

    pub(super) fn run(mut self) -> Report {
        let (mut next, mut tick) = (0, TICK);
        for source in &self.workload.sources {
            let windows =
                (self.workload.lasts - self.workload.warm_up).as_secs() / WINDOW.as_secs();
            let service = vec![0; usize::try_from(windows).unwrap()];
            self.report.service.insert(source.tenant, service);
        }
        loop {
            let arrival = self.requests.get(next).map(|request| request.at);
            let sent = self.sent.front().map(|(at, ..)| *at);
            let step = self.step.as_ref().map(|(ends, _)| *ends);
            let wakes = self.scheduler.wakes_at().map(|at| at - self.start);
            let now = [Some(tick), arrival, sent, step, wakes]
                .into_iter()
                .flatten()
                .min();
            let Some(now) = now.filter(|now| *now < self.workload.lasts) else {
                break;
            };
            if arrival == Some(now) {
                self.arrive(next, now);
                next += 1;
            } else if sent == Some(now) {
                self.submit(now);
            } else if step == Some(now) {
                self.end_step(now);
            } else if tick == now {
                self.tick(now);
                tick += TICK;
            }
            self.dispatch(now);
            self.start_step(now);
        }
        self.close()
    }

    fn arrive(&mut self, index: usize, now: Duration) {
        let request = &self.requests[index];
        let source = self.workload.sources[request.source];
        let at = self.start + now;
        if self.arm == Arm::Bucket && self.buckets[request.source].take(1, at) != Verdict::Granted {
            self.report.refused += 1;
            // A refused request has no first token; the price of the bucket is in `refused`.
            self.first_token[index] = Some(Duration::MAX);
            return;
        }
        let arrival = Arrival {
            tenant: source.tenant.into(),
            weight: source.weight,
            group: Group {
                name: "".into(),
                weight: 1,
            },
            flow: None,
            class: 0,
            prompt_tokens: u64::from(request.prompt),
            max_tokens: Some(source.claims.unwrap_or(u64::from(request.output))),
            choices: 1,
            bytes: 0,
            tenant_bounds: TenantBounds::default(),
            expires: at + Duration::from_secs(1_000_000),
            is_retry: false,
        };
        let pushed = self.scheduler.push(&arrival, index, at).unwrap();
        self.report.displaced += pushed.displaced.len();
    }

    fn dispatch(&mut self, now: Duration) {
        while self.scheduler.overdue(self.start + now).is_some() {}
        while let Some(next) = self.scheduler.next(self.start + now) {
            if !self.streams(next.item) {
                self.scheduler.hide(next.key);
            }
            let arrives = now + self.workload.preset.front_end;
            self.sent
                .push_back((arrives, next.item, next.key, next.tag));
        }
        if let Some(window) = self.scheduler.snapshot_window() {
            let most = settings(self.arm, self.workload).fair.capacity;
            let is_over = window.sequences > most.engine_sequences();
            self.report.over_limit += u64::from(is_over);
        }
    }

    fn submit(&mut self, now: Duration) {
        let Some((_, index, key, tag)) = self.sent.pop_front() else {
            return;
        };
        let request = &self.requests[index];
        let engine = self.engine.submit(
            self.start + now,
            engine::Request {
                prompt: Prompt::opaque(request.prompt),
                max_tokens: request.output,
                limit: u32::MAX,
                priority: i32::try_from(tag).unwrap(),
            },
        );
        let running = Running {
            request: index,
            key,
            counted: 0,
            is_acked: false,
        };
        self.running.insert(engine.unwrap(), running);
    }

    fn start_step(&mut self, now: Duration) {
        if self.step.is_none()
            && let Some(step) = self.engine.step(self.start + now)
        {
            self.left_waiting = self.engine.waiting();
            self.step = Some((now + step.duration, step));
        }
    }

    fn end_step(&mut self, now: Duration) {
        let Some((_, step)) = self.step.take() else {
            return;
        };
        self.report.steps += 1;
        self.report.busy += step.duration;
        self.report.preempted += step.preempted.len();
        for engine in &step.first_tokens {
            let Some(running) = self.running.get_mut(engine) else {
                continue;
            };
            if running.is_acked {
                continue;
            }
            running.is_acked = true;
            let running = *running;
            self.first_token[running.request] = Some(now);
            if self.streams(running.request) {
                self.scheduler.first_token(running.key, self.start + now);
            }
            let prompt = u64::from(self.requests[running.request].prompt);
            self.serve(running.request, now, prompt, prompt);
        }
        for finished in &step.finished {
            let Some(running) = self.running.remove(&finished.key) else {
                continue;
            };
            let tokens = u64::from(finished.generated - running.counted);
            self.serve(running.request, now, tokens, 2 * tokens);
            let usage = Usage {
                prompt_tokens: u64::from(self.requests[running.request].prompt),
                cached_tokens: u64::from(finished.cached_tokens),
                completion_tokens: u64::from(finished.generated),
            };
            let outcome = Outcome::Completed(usage);
            self.scheduler
                .finish(running.key, &outcome, self.start + now);
        }
    }

    fn tick(&mut self, now: Duration) {
        let at = self.start + now;
        let mut running = std::mem::take(&mut self.running);
        for (engine, running) in &mut running {
            let Some(generated) = self.engine.generated(*engine) else {
                continue;
            };
            if !self.streams(running.request) {
                let estimate = self.scheduler.estimate(running.key, at).unwrap();
                self.report.judge(estimate, generated);
            }
            if generated > running.counted && running.is_acked {
                if self.streams(running.request) {
                    self.scheduler
                        .streamed(running.key, u64::from(generated), at);
                }
                let tokens = u64::from(generated - running.counted);
                self.serve(running.request, now, tokens, 2 * tokens);
                running.counted = generated;
            }
        }
        self.running = running;
        self.scheduler.tick(at);
        if self.tells_waiting && now.as_millis().is_multiple_of(1000) {
            let waiting = Some(self.left_waiting as u64);
            self.scheduler.engine_waiting(waiting, at);
        }
        if now >= self.workload.warm_up {
            self.report.looks += 1;
            self.report.long_looks += u64::from(self.left_waiting > 2);
        }
    }

    fn streams(&self, request: usize) -> bool {
        self.workload.sources[self.requests[request].source].streams
    }

    fn serve(&mut self, request: usize, now: Duration, tokens: u64, cost: u64) {
        let Some(since) = now.checked_sub(self.workload.warm_up) else {
            return;
        };
        self.report.tokens += tokens;
        let window = usize::try_from(since.as_secs() / WINDOW.as_secs()).unwrap();
        let tenant = self.workload.sources[self.requests[request].source].tenant;
        if let Some(service) = self.report.service.get_mut(tenant)
            && let Some(service) = service.get_mut(window)
        {
            *service += cost;
        }
    }

    fn close(mut self) -> Report {
        let lasts = self.workload.lasts;
        for (request, first) in self.requests.iter().zip(&self.first_token) {
            let is_counted = request.at >= self.workload.warm_up && *first != Some(Duration::MAX);
            if is_counted {
                let delay = first.unwrap_or(lasts) - request.at;
                let tenant = self.workload.sources[request.source].tenant;
                let delays = self.report.first_tokens.entry(tenant).or_default();
                delays.push(delay);
            }
        }
        self.report
    }
}
