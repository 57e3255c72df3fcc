//! Runs plans against a server.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::Duration,
};

use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until, timeout_at},
};

use kvwarden_policy::simulation::rng::SplitMix;

use super::{
    client::{Target, Tenant, Trace},
    lag::{Lag, LagMeter},
    plan::{Load, Shot},
    prompt::Prompts,
    sample::{Outcome, Sample},
};

/// What bounds a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How long requests are sent.
    pub lasting: Duration,
    /// How long answers may take after that. Then they are unfinished.
    pub grace: Duration,
    /// Largest 99th percentile of the generator's own lag. Beyond it the run says more about the
    /// client than about the server.
    pub max_lag: Duration,
}

/// Requests in flight at once; each holds a connection. As many loopback ports as Linux hands out to
/// one address by default, less some.
const MAX_OPEN: u64 = 20_000;

/// Counts of a run so far, for progress displays.
#[derive(Debug, Default)]
pub struct Live {
    /// Requests sent.
    pub sent: Cell<u64>,
    /// Whole answers.
    pub ok: Cell<u64>,
    /// Refusals.
    pub refused: Cell<u64>,
    /// Everything else that ended.
    pub failed: Cell<u64>,
    /// Tenant and time to first token, as they come.
    pub ttfts: RefCell<Vec<(usize, Duration)>>,
}

impl Live {
    /// Requests that are not over.
    #[must_use]
    pub fn open(&self) -> u64 {
        self.sent.get() - self.ok.get() - self.refused.get() - self.failed.get()
    }
}

/// A run that can be reported.
#[derive(Debug)]
pub struct Run {
    /// Every request, tenant by tenant.
    pub samples: Vec<Sample>,
    /// The generator's own lag.
    pub lag: Lag,
}

/// Why a run tells nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RunError {
    /// The generator was short of CPU.
    #[error(
        "the load generator was saturated: its own lag was {} ms at the 99th percentile, and more \
         than {} ms would be counted as the server's; send less, or free a core",
        lag.p99.as_millis(), at_most.as_millis()
    )]
    Saturated {
        /// How late it was.
        lag: Lag,
        /// How late it may be.
        at_most: Duration,
    },
    /// The server lets requests pile up without limit.
    #[error("more than {MAX_OPEN} requests were open at once")]
    TooManyOpen,
}

/// Sends every tenant's plan and waits for what comes.
///
/// # Errors
/// When the generator itself could not keep up: such figures are not reported.
pub async fn run(
    target: &Rc<Target>,
    plans: &[(Load, Vec<Shot>)],
    prompts: Prompts,
    seed: u64,
    limits: Limits,
    live: &Rc<Live>,
) -> Result<Run, RunError> {
    let begin = Instant::now();
    let mut tenants = JoinSet::new();
    for (index, (load, shots)) in plans.iter().enumerate() {
        let sender = Sender {
            index,
            client: Tenant::new(target.clone(), &load.tenant),
            prompts,
            rng: SplitMix::named(seed, &format!("words of {}", load.tenant)),
            begin,
            deadline: begin + limits.lasting + limits.grace,
            live: live.clone(),
        };
        tenants.spawn_local(sender.send_all(shots.clone()));
    }
    let mut heart = LagMeter::default();
    let ended = async {
        let mut whole = Vec::new();
        let mut lag = Lag::default();
        while let Some(ended) = tenants.join_next().await {
            // A task ends early only by a panic, which must not pass for a quiet tenant.
            let (samples, late) =
                ended.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))?;
            whole.extend(samples);
            lag = lag.or_worse(late.lag());
        }
        whole.sort_by_key(|sample: &Sample| (sample.tenant, sample.scheduled));
        Ok((whole, lag))
    };
    let (samples, lag) = tokio::select! {
        () = heart.beat() => unreachable!("the heart beats for ever"),
        ended = ended => ended?,
    };
    let lag = lag.or_worse(heart.lag());
    if lag.p99 > limits.max_lag {
        return Err(RunError::Saturated {
            lag,
            at_most: limits.max_lag,
        });
    }
    Ok(Run { samples, lag })
}

/// Sends one tenant's plan.
struct Sender {
    index: usize,
    client: Tenant,
    prompts: Prompts,
    rng: SplitMix,
    begin: Instant,
    deadline: Instant,
    live: Rc<Live>,
}

// === impl Sender ===

impl Sender {
    async fn send_all(mut self, shots: Vec<Shot>) -> Result<(Vec<Sample>, LagMeter), RunError> {
        let mut requests = JoinSet::new();
        let mut samples = Vec::with_capacity(shots.len());
        let mut lag = LagMeter::default();
        for shot in shots {
            let planned = self.begin + shot.at;
            sleep_until(planned).await;
            lag.note(planned, Instant::now());
            if self.live.open() >= MAX_OPEN {
                return Err(RunError::TooManyOpen);
            }
            self.live.sent.update(|count| count + 1);
            requests.spawn_local(self.request(shot));
            while let Some(ended) = requests.try_join_next() {
                samples.extend(ended);
            }
        }
        while let Some(ended) = requests.join_next().await {
            samples.extend(ended);
        }
        Ok((samples, lag))
    }

    fn request(&mut self, shot: Shot) -> impl Future<Output = Sample> + 'static {
        let prompt = self.prompts.make(shot.prompt_tokens, &mut self.rng);
        let body = self.client.target().body(&prompt, &shot);
        let (client, live) = (self.client.clone(), self.live.clone());
        let (index, begin, deadline) = (self.index, self.begin, self.deadline);
        async move {
            let mut trace = Trace::default();
            let exchange = timeout_at(deadline, client.exchange(body, &mut trace));
            let outcome = exchange.await.unwrap_or(Outcome::Unfinished);
            let ended = Instant::now();
            match &outcome {
                Outcome::Ok => live.ok.update(|count| count + 1),
                Outcome::Refused { .. } => live.refused.update(|count| count + 1),
                Outcome::Failed { .. } | Outcome::Cut { .. } | Outcome::Unfinished => {
                    live.failed.update(|count| count + 1);
                }
            }
            let sample = Sample {
                tenant: index,
                scheduled: shot.at,
                prompt_tokens: shot.prompt_tokens,
                sent: trace.sent.unwrap_or(ended) - begin,
                events: trace.events.iter().map(|at| *at - begin).collect(),
                ended: ended - begin,
                usage: trace.usage,
                outcome,
                is_simulated: trace.is_simulated,
            };
            live.ttfts
                .borrow_mut()
                .extend(sample.ttft().map(|ttft| (index, ttft)));
            sample
        }
    }
}
