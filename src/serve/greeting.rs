//! What people read once everything is ready: a request to try.

use std::{io::Write as _, time::Duration};

use actix::Addr;
use kvwarden_actors::{Overview, Router, model::ModelState, overview::OverviewError};
use kvwarden_policy::lifecycle::State;
use tokio::time::Instant;

use crate::{config::Config, http::admin::health};

/// How often it is looked whether everything is ready.
const LOOK: Duration = Duration::from_millis(50);

/// Once everything is ready, says what to try.
pub(super) async fn greet(config: Config, router: Addr<Router>) {
    let begun = Instant::now();
    loop {
        tokio::time::sleep(LOOK).await;
        let now = match Overview::of(&router).await {
            Ok(now) => now,
            Err(OverviewError::Timeout { .. }) => continue,
            Err(OverviewError::Ended(_)) => return,
        };
        if !health::is_ready(&now) {
            continue;
        }
        // One that serves is a better example than one that has to come first.
        let serves = |model: &&ModelState| model.state == State::Ready;
        let Some(model) = now.models.iter().find(serves).or(now.models.first()) else {
            return;
        };
        // Nobody is left to greet if stderr is closed.
        let _ = write!(
            anstream::stderr(),
            "{}",
            greeting(&config, model, begun.elapsed())
        );
        return;
    }
}

fn greeting(config: &Config, model: &ModelState, took: Duration) -> String {
    let tenant = config
        .tenants
        .iter()
        .find(|tenant| tenant.api_keys.is_empty());
    let who = match tenant {
        Some(tenant) => format!("-H 'X-Tenant-ID: {}' ", tenant.id),
        None if config.tenants.is_empty() => String::new(),
        None => "-H 'Authorization: Bearer YOUR_KEY' ".to_owned(),
    };
    let name = model
        .names
        .get(1)
        .or(model.names.first())
        .map_or("", String::as_str);
    let is_simulated = model.engine.dialect().is_simulated();
    let simulated = if is_simulated {
        "\n\n(simulated: the text is made up)"
    } else {
        ""
    };
    format!(
        "\nready after {:.1} s. Try:\n\n  curl http://{}/v1/chat/completions {who}\\\n    -H 'content-type: application/json' \\\n    -d '{{\"model\":\"{name}\",\"temperature\":0,\"messages\":[{{\"role\":\"user\",\"content\":\"Write one sentence about the sea.\"}}]}}'{simulated}\n\n",
        took.as_secs_f64(),
        config.listen,
    )
}
