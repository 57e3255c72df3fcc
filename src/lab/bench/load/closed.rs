//! The one closed loop here: finding out how much a server can do before offering more than that.

use std::{rc::Rc, time::Duration};

use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout_at},
};

use super::{
    SplitMix,
    client::{Target, Tenant, Trace},
    plan::{Load, Shot},
    prompt::Prompts,
    sample::{Outcome, tokens_per_event},
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
    let tenant = Tenant::new(target.clone(), &load.tenant);
    let mut loops = JoinSet::new();
    for client in 0..clients {
        let (tenant, load) = (tenant.clone(), load.clone());
        let mut rng = SplitMix::named(client as u64, "closed loop");
        loops.spawn_local(async move {
            let mut done = (0.0, 0.0);
            while Instant::now() < until {
                let shot = Shot::draw(Duration::ZERO, &load, &mut rng);
                let prompt = prompts.make(shot.prompt_tokens, &mut rng);
                let body = tenant.target().body(&prompt, &shot);
                let mut trace = Trace::default();
                let outcome = timeout_at(until, tenant.exchange(body, &mut trace)).await;
                let inside = trace.events.iter();
                let inside = inside.filter(|at| (from..until).contains(*at)).count();
                let tokens = inside as f64 * tokens_per_event(trace.usage, trace.events.len());
                done.0 += tokens;
                done.1 += tokens / f64::from(shot.output_tokens);
                if matches!(
                    outcome,
                    Ok(Outcome::Refused { .. } | Outcome::Failed { .. })
                ) {
                    // A server that refuses at once must not be asked in a tight loop.
                    sleep(Duration::from_millis(50)).await;
                }
            }
            done
        });
    }
    let done = loops.join_all().await;
    let seconds = (lasting / 2).as_secs_f64();
    Pace {
        clients,
        output_tokens_per_s: done.iter().map(|done| done.0).sum::<f64>() / seconds,
        requests_per_s: done.iter().map(|done| done.1).sum::<f64>() / seconds,
    }
}
