//! Properties, a comparison with VTC as published, and simulated traffic in virtual time.

mod bounds;
mod charging;
mod engines;
mod forecast;
mod hidden;
mod mutants;
mod properties;
mod reshare;
mod service;
mod sim;
mod vtc;
mod window;

use std::time::{Duration, Instant};

use super::{
    Arrival, Bounds, Capacity, Discipline, FairSettings, Group, Order, Scheduler, Settings,
    TenantBounds, fair::FairCore,
};
use crate::epoch;

/// Room for everything that a test pushes.
const ROOMY: Bounds = Bounds {
    requests: 1_000_000,
    bytes: u64::MAX,
};

fn fair(capacity: Capacity) -> Settings {
    Settings {
        discipline: Discipline::Fair,
        bounds: ROOMY,
        max_in_flight: 8,
        fair: FairSettings::new(capacity),
    }
}

/// A request of a tenant in a group of its own choice, all else as usual.
fn arrival(group: &str, tenant: &str, prompt_tokens: u64, now: Instant) -> Arrival {
    Arrival {
        tenant: tenant.into(),
        weight: 1,
        group: Group {
            name: group.into(),
            weight: 1,
        },
        flow: None,
        class: 0,
        prompt_tokens,
        max_tokens: None,
        choices: 1,
        bytes: 1,
        tenant_bounds: TenantBounds::default(),
        expires: now + Duration::from_secs(3600),
        is_retry: false,
    }
}

fn core<T>(scheduler: &Scheduler<T>) -> &FairCore {
    match &scheduler.order {
        Order::Fair(core) => core,
        Order::Fifo(_) | Order::Drr(_) => panic!("not fair"),
    }
}
