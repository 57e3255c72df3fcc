//! How an engine comes to its task: started, or adopted from an earlier kvwarden.

use std::path::PathBuf;

use kvwarden_policy::{failure::FailureClass, lifecycle::SleepLevels};

use super::{
    child::Child,
    handover::{Handover, HandoverState},
    orphans::{self, Orphan},
    shim::{ShimSpec, StopCommand},
    task::{EngineTask, Params},
};
use crate::engine::{Endpoint, EngineEnd, Launch, Start};

/// A running engine, and what is written down of it for a kvwarden that comes after us.
pub(super) struct Started {
    pub(super) child: Child,
    pub(super) token: String,
    pub(super) record: PathBuf,
    pub(super) handover: Handover,
}

impl EngineTask {
    /// Adopts the engine if its model asked for the one that an earlier kvwarden left; starts it anew
    /// otherwise.
    pub(super) async fn bring_up(&self, launch: &Launch) -> Result<Started, EngineEnd> {
        match &self.orphan {
            Some(orphan) if orphan.generation() == self.spawn.generation => {
                self.adopt(orphan, launch).await
            }
            Some(orphan) => {
                orphan.clone().end().await;
                self.start(launch).await
            }
            None => self.start(launch).await,
        }
    }

    async fn start(&self, launch: &Launch) -> Result<Started, EngineEnd> {
        let no_port = |error| {
            let reason = format!("no free loopback port: {error}");
            EngineEnd::new(FailureClass::Crashed, reason)
        };
        let port = free_port().map_err(no_port)?;
        let key = random_hex();
        let start = Start {
            port,
            key: &key,
            gpus: &self.gpus,
        };
        let spec = self.shim_spec(launch, start);
        let (record, token) = (spec.record.clone(), spec.token.clone());
        let mut handover = Handover {
            fingerprint: launch.fingerprint(),
            devices: self.spawn.devices.clone(),
            bytes: self.bytes,
            state: HandoverState::Starting,
            endpoint: Endpoint {
                model: self.spawn.engine.clone(),
                kind: launch.kind,
                generation: self.spawn.generation,
                base: format!("http://127.0.0.1:{port}"),
                api_key: Some(key),
                served_name: launch.served_name.clone(),
                levels: SleepLevels::default(),
                canary: None,
            },
        };
        self.note(&record, &mut handover, HandoverState::Starting)
            .await;
        match Child::start(&self.params.shim, spec).await {
            Ok(child) => Ok(Started {
                child,
                token,
                record,
                handover,
            }),
            Err(error) => {
                orphans::forget(&record);
                Err(EngineEnd::new(
                    FailureClass::NotInstalled,
                    error.to_string(),
                ))
            }
        }
    }

    /// Takes over the engine of an earlier kvwarden, or ends it.
    async fn adopt(&self, orphan: &Orphan, launch: &Launch) -> Result<Started, EngineEnd> {
        let fits = |handover: &Handover| {
            handover.state != HandoverState::Away && handover.fingerprint == launch.fingerprint()
        };
        let Some(mut handover) = orphan.handover.clone().filter(fits) else {
            orphan.clone().end().await;
            let reason = "it was changing, or its configuration has changed";
            return Err(EngineEnd::new(FailureClass::Stopped, reason));
        };
        // Which of them it may use may have changed.
        let known = handover.endpoint.levels.iter();
        let allowed = known.filter(|level| launch.flags.levels.contains(*level));
        handover.endpoint.levels = allowed.collect();
        match Child::adopt(&orphan.path, orphan.record.clone()).await {
            Ok(child) => Ok(Started {
                child,
                token: orphan.record.token.clone(),
                record: orphan.path.clone(),
                handover,
            }),
            Err(error) => {
                orphan.clone().end().await;
                Err(EngineEnd::new(FailureClass::Killed, error.to_string()))
            }
        }
    }

    fn shim_spec(&self, launch: &Launch, start: Start<'_>) -> ShimSpec {
        let command = launch.command(start, std::env::vars());
        let stop = launch.stop_command(start, std::env::vars());
        let token = random_hex();
        // Short, since the path of a Unix socket ends at 107 bytes.
        let short = &token[..8];
        let Params {
            run_dir,
            orphan_grace,
            ..
        } = &self.params;
        ShimSpec {
            model: self.spawn.engine.to_string(),
            generation: self.spawn.generation.0,
            program: command.program,
            args: command.args,
            env: command.env,
            socket: run_dir.join(format!("{short}.sock")),
            record: run_dir.join(format!("{short}.json")),
            log: self.log(),
            orphan_grace: *orphan_grace,
            stop: stop.map(|command| StopCommand {
                program: command.program,
                args: command.args,
                env: command.env,
            }),
            token,
        }
    }
}

/// A loopback port that was free a moment ago. Another process may take it before the engine does;
/// then the engine ends with [`FailureClass::PortInUse`] and its next start gets another.
fn free_port() -> std::io::Result<u16> {
    Ok(std::net::TcpListener::bind(("127.0.0.1", 0))?
        .local_addr()?
        .port())
}

/// 128 random bits.
fn random_hex() -> String {
    format!("{:032x}", rand::random::<u128>())
}
