//! The task of one engine: what it is given and how it tells.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use actix::Recipient;
use tokio::sync::mpsc;

use super::{
    handover::{Handover, HandoverState},
    leadership::Leadership,
    orphans::Orphan,
};
use crate::{
    device::Reader,
    engine::{EngineGone, EngineNews, News, Order, Spawn},
};

/// What an engine is told to do.
pub(super) type Orders = mpsc::UnboundedReceiver<Order>;

/// How engines are run on this node.
#[derive(Clone, Debug)]
pub(crate) struct Params {
    /// The executable that has the subcommand `shim`: our own.
    pub(crate) shim: PathBuf,
    /// Where shims listen and keep their records.
    pub(crate) run_dir: PathBuf,
    /// Where engines' output goes.
    pub(crate) log_dir: PathBuf,
    /// Whether this process decides about engines.
    pub(crate) leadership: Leadership,
    /// How long engines outlive us if we die without stopping them.
    pub(crate) orphan_grace: Duration,
    /// How long nothing may move in an engine that starts.
    pub(crate) start_stall_timeout: Duration,
    /// Bytes of disk for KV that stopped engines leave behind, all models together.
    pub(crate) max_saved_kv: u64,
}

/// One engine to run.
pub(crate) struct EngineTask {
    pub(crate) params: Params,
    pub(crate) spawn: Spawn,
    /// What CUDA calls the devices it was given.
    pub(crate) gpus: Vec<String>,
    /// What it is charged for on each device.
    pub(crate) bytes: u64,
    /// What an earlier kvwarden left of it.
    pub(crate) orphan: Option<Orphan>,
    /// Who hears that nothing is left of it.
    pub(crate) gone: Recipient<EngineGone>,
    pub(crate) reader: Reader,
}

// === impl EngineTask ===

impl EngineTask {
    /// Reports to the model, if it still lives.
    pub(super) fn tell(&self, what: News) {
        let news: Option<Recipient<EngineNews>> = self.spawn.news.upgrade();
        if let Some(news) = news {
            news.do_send(EngineNews {
                engine: self.spawn.engine.clone(),
                generation: self.spawn.generation,
                what,
            });
        }
    }

    /// Whether this process decides about the engine.
    pub(super) fn is_leader(&self) -> bool {
        self.params.leadership.is_held()
    }

    /// Where the engine's output goes.
    pub(super) fn log(&self) -> PathBuf {
        let safe = |c: char| {
            if c.is_ascii_alphanumeric() || "._-".contains(c) {
                c
            } else {
                '_'
            }
        };
        let name: String = self.spawn.engine.as_str().chars().map(safe).collect();
        self.params.log_dir.join(format!("{name}.log"))
    }

    /// Writes down what a successor would need, if engines outlive us at all.
    pub(super) async fn note(&self, record: &Path, handover: &mut Handover, state: HandoverState) {
        handover.state = state;
        if !self.params.orphan_grace.is_zero() && self.is_leader() {
            handover.write(record).await;
        }
    }
}
