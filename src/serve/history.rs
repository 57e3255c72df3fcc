//! What is remembered of models across restarts: how often each was asked for and after whom, and
//! what its comings and goings cost. Without it every restart would begin by guessing.

use std::{collections::BTreeMap, io, path::PathBuf, time::Duration};

use actix::Addr;
use kvwarden_actors::{
    Overview, Router,
    files::{self, Durability, Readers},
    process::leadership::Leadership,
};
use kvwarden_policy::residency::{Costs, Rate, Succession};
use serde::{Deserialize, Serialize};

use crate::layout::Layout;

/// How often it is written; a crash loses no more than this.
const INTERVAL: Duration = Duration::from_secs(30);

/// What is remembered.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct History {
    /// Last requests, by model.
    pub rates: BTreeMap<String, Rate>,
    /// What changing sleep levels took, by engine.
    pub costs: BTreeMap<String, Costs>,
    /// Which engine is asked after which.
    pub succession: Succession,
}

// === impl History ===

impl History {
    /// What was written last. A file that is not there or not understood is no history.
    #[must_use]
    pub fn load(layout: &Layout) -> Self {
        let path = file(layout);
        match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                tracing::warn!(path = %path.display(), %error, "not understood, so forgotten");
                Self::default()
            }),
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!(path = %path.display(), %error, "cannot be read");
                }
                Self::default()
            }
        }
    }

    fn of(overview: &Overview) -> Self {
        let models = overview.models.iter();
        let residents = overview.gpu.residents.iter();
        Self {
            rates: models
                .map(|model| (model.id.to_string(), model.rate.clone()))
                .collect(),
            costs: residents
                .map(|resident| (resident.engine.to_string(), resident.costs))
                .collect(),
            succession: overview.gpu.succession.clone(),
        }
    }

    fn save(&self, layout: &Layout) -> io::Result<()> {
        let content = serde_json::to_vec(self)?;
        files::replace(&file(layout), &content, Readers::Owner, Durability::None)
    }
}

/// Writes what is known now.
pub async fn save(router: &Addr<Router>, layout: &Layout) {
    if let Ok(overview) = Overview::of(router).await
        && let Err(error) = History::of(&overview).save(layout)
    {
        tracing::warn!(%error, "what models cost is not remembered");
    }
}

/// Writes it now and then, for as long as it is polled and this process leads.
pub async fn keep(router: Addr<Router>, layout: Layout, leadership: Leadership) {
    loop {
        tokio::time::sleep(INTERVAL).await;
        if leadership.is_held() {
            save(&router, &layout).await;
        }
    }
}

fn file(layout: &Layout) -> PathBuf {
    layout.state.join("models.json")
}
