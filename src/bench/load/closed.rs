//! The one closed loop here: finding out how much a server can do before offering more than that.

use std::{cell::Cell, rc::Rc, time::Duration};

use tokio::{
    task::JoinSet,
    time::{Instant, timeout_at},
};

use super::{
    SplitMix,
    client::{Target, Tenant, Trace},
    plan::{Load, Shot},
    prompt::Prompts,
    sample::Outcome,
};

/// What a number of clients got that each send again as soon as they are answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct Pace {
    /// How many clients.
    pub clients: usize,
    /// Output tokens per second in the second half.
    pub output_tokens_per_s: f64,
    /// Requests per second, each counted by the share of its answer that came in that time.
    pub requests_per_s: f64,
}

/// Work that was done in the second half.
#[derive(Debug, Default)]
struct Done {
    tokens: Cell<f64>,
    requests: Cell<f64>,
}

impl Done {
    fn add(&self, tokens: f64, requests: f64) {
        self.tokens.set(self.tokens.get() + tokens);
        self.requests.set(self.requests.get() + requests);
    }
}

/// Keeps `clients` requests of this kind in flight for `lasting` and measures the second half.
pub async fn closed_loop(
    target: &Rc<Target>,
    load: &Load,
    prompts: Prompts,
    clients: usize,
    lasting: Duration,
) -> Pace {
    let begin = Instant::now();
    let (from, until) = (begin + lasting / 2, begin + lasting);
    // Tokens that came in the second half, and what part of its own answer each was.
    let done = Rc::new(Done::default());
    let tenant = Tenant::new(target.clone(), &load.tenant);
    let mut loops = JoinSet::new();
    for client in 0..clients {
        let (tenant, done, load) = (tenant.clone(), done.clone(), load.clone());
        let mut rng = SplitMix::named(client as u64, "closed loop");
        loops.spawn_local(async move {
            while Instant::now() < until {
                let shot = Shot {
                    at: Duration::ZERO,
                    prompt_tokens: load.prompt.draw(&mut rng),
                    output_tokens: load.output.draw(&mut rng),
                };
                let body = tenant
                    .target()
                    .body(&prompts.make(shot.prompt_tokens, &mut rng), &shot);
                let mut trace = Trace::default();
                let outcome = timeout_at(until, tenant.exchange(body, &mut trace)).await;
                let events = trace.events.len();
                let tokens = trace
                    .usage
                    .map_or(events as f64, |usage| usage.completion_tokens as f64);
                let inside = trace
                    .events
                    .iter()
                    .filter(|at| **at >= from && **at < until);
                let inside = inside.count() as f64 * tokens / events.max(1) as f64;
                done.add(inside, inside / f64::from(shot.output_tokens));
                if matches!(
                    outcome,
                    Ok(Outcome::Refused { .. } | Outcome::Failed { .. })
                ) {
                    // A server that refuses at once must not be asked in a tight loop.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        });
    }
    while loops.join_next().await.is_some() {}
    let seconds = (lasting / 2).as_secs_f64();
    let (tokens, requests) = (done.tokens.get(), done.requests.get());
    Pace {
        clients,
        output_tokens_per_s: tokens / seconds,
        requests_per_s: requests / seconds,
    }
}
