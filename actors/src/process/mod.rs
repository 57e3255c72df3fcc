//! Engines as processes: started under a shim, adopted from an earlier kvwarden, followed to their end.
//!
//! Each engine has one task ([`EngineTask`]), which owns the connection to the engine's shim; nobody else
//! changes or stops the engine. The task ends when nothing of the engine is left, and says so last.
//! It never decides whether an engine starts or sleeps: its model orders that.
//!
//! Of these modules each imports only what stands above it:
//!
//! | module | does |
//! |---|---|
//! | `tree`, `cgroup`, `leadership` | finds and kills processes; who may |
//! | `shim`, `child` | the protocol with a shim, and one shim as a handle |
//! | `handover`, `orphans` | what is written down for the next kvwarden, and what the last one left |
//! | `end` | the class and the sentence of an end |
//! | `task` | the data of a task, and how it tells |
//! | `start` | an engine fresh or adopted |
//! | `startup`, `prove`, `transition` | watches a start, proves that an engine works, changes one |
//! | `supervise` | the loop that waits for the next of all these |
//! | `attached` | the same for a server that somebody else runs |

mod attached;
pub mod cgroup;
pub mod child;
mod end;
pub mod handover;
pub mod leadership;
pub mod orphans;
mod prove;
pub mod shim;
mod start;
pub mod startup;
mod supervise;
mod task;
mod transition;
pub mod tree;

use kvwarden_policy::failure::FailureClass;

use task::Orders;
pub(crate) use task::{EngineTask, Params};

use crate::engine::{
    EngineEnd, EngineGone, EngineSpec, Launch, News, kv_disk_gc::KvDiskGc, saved_kv,
};

impl EngineTask {
    /// Runs the engine until nothing of it is left. `orders` is how it is told what to do.
    pub(crate) async fn run(self, mut orders: Orders) {
        let end = match self.spawn.spec.clone().as_ref() {
            EngineSpec::Child(launch) => {
                let end = self.run_child(launch, &mut orders).await;
                // The planner shall see its memory free before it hears that nobody holds it.
                self.reader.read().await;
                end
            }
            EngineSpec::Attached(attached) => attached::watch(&self, &mut orders, attached).await,
        };
        self.gone.do_send(EngineGone {
            engine: self.spawn.engine.clone(),
            generation: self.spawn.generation,
        });
        self.tell(News::Exited(end::with_advice(end)));
    }

    async fn run_child(&self, launch: &Launch, orders: &mut Orders) -> EngineEnd {
        if let Err(error) = saved_kv::prepare(launch) {
            let reason = format!("cannot make {}: {error}", launch.kv_dir.display());
            return EngineEnd::new(FailureClass::NotInstalled, reason);
        }
        let leadership = self.params.leadership.clone();
        let _collector = KvDiskGc::of(launch, move || leadership.is_held());
        match self.bring_up(launch).await {
            Ok(started) => {
                let record = started.record.clone();
                let end = supervise::until_end(self, started, launch, orders).await;
                if self.is_leader() {
                    orphans::forget(&record);
                }
                end
            }
            Err(end) => end,
        }
    }
}
