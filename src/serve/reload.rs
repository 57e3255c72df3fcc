//! Reading the configuration again while it is in use: on SIGHUP, or when an operator asks.
//!
//! A file that is refused changes nothing. One that is taken goes to the actors first, so that they
//! know whoever the API then lets in, and to the API as a whole.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, PoisonError},
    time::SystemTime,
};

use futures_util::{FutureExt as _, future::LocalBoxFuture};
use kvwarden_actors::{
    EngineObserver, Refusal,
    protocol::{ListActors, SetTuning, Snapshot},
    router::RouterState,
};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::Mutex;

use crate::{
    config::{self, Changes, Config, ConfigError, Loaded, Overrides, change},
    http::{Shared, admin::control::Reload, refusal::Failure},
    layout::Layout,
    metrics::OfResult,
    serve::{history::History, prepare, wiring},
};

/// Where a configuration comes from.
#[derive(Clone, Debug)]
pub struct Source {
    /// The file, if there is one.
    pub file: Option<PathBuf>,
    /// The models of the command line otherwise.
    pub models: Vec<String>,
    /// The options of the command line.
    pub overrides: Overrides,
}

/// Why the configuration stays as it is.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// It came from the command line.
    #[error(
        "kvwarden was started without a configuration file; start it with --config FILE to have one read again"
    )]
    NoFile,
    /// The file is not right.
    #[error("{text}{error}; the configuration stays as it was", text = plain(&error.render()))]
    Refused {
        /// All that is wrong with it.
        error: ConfigError,
    },
    /// kvwarden is about to end.
    #[error("kvwarden is stopping")]
    Draining,
    /// Something of kvwarden itself failed.
    #[error("{0:#}")]
    Failed(anyhow::Error),
}

/// How the configuration was read again, for people.
#[derive(Clone, Debug, Serialize)]
struct Reloaded {
    /// Which time this was, from 1.
    number: u64,
    /// When, in seconds since 1970.
    at: u64,
    /// What changed.
    changes: Option<Changes>,
    /// Why nothing did.
    error: Option<String>,
}

/// Reads the configuration again, one time after the other.
pub struct Reloader {
    source: Source,
    layout: Layout,
    observer: Arc<dyn EngineObserver>,
    shared: Arc<Shared>,
    running: Mutex<Config>,
    /// How it went the last time.
    last: std::sync::Mutex<Option<Reloaded>>,
}

// === impl Source ===

impl Source {
    /// Reads it.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn load(&self) -> Result<Loaded, ConfigError> {
        let env = config::process_environment();
        match &self.file {
            Some(file) => Config::load(file, &env, &self.overrides),
            None => Config::from_flags(&self.models, &env, &self.overrides),
        }
    }

    /// Reads it for a server that goes on listening where it does, and is open to whom it is.
    fn load_again(mut self, listen: SocketAddr) -> Result<Loaded, ConfigError> {
        let loaded = self.load()?;
        if loaded.config.listen != listen {
            self.overrides.host = Some(listen.ip().to_string());
            self.overrides.port = Some(listen.port());
            self.load()?;
        }
        Ok(loaded)
    }
}

// === impl Reloader ===

impl Reloader {
    /// `running` is what the actors and `shared` were made by.
    #[must_use]
    pub fn new(
        source: Source,
        layout: Layout,
        observer: Arc<dyn EngineObserver>,
        shared: Arc<Shared>,
        running: Config,
    ) -> Self {
        Self {
            source,
            layout,
            observer,
            shared,
            running: Mutex::new(running),
            last: std::sync::Mutex::default(),
        }
    }

    /// What is in use.
    pub async fn running(&self) -> Config {
        self.running.lock().await.clone()
    }

    /// Reads the file and does what it says.
    ///
    /// # Errors
    /// When everything stays as it is.
    pub async fn reload(&self) -> Result<Changes, ReloadError> {
        let mut running = self.running.lock().await;
        let result = self.apply(&mut running).await;
        match &result {
            Ok(changes) => tracing::info!("the configuration was read again: {changes}"),
            Err(error) => tracing::error!("the configuration was not read again: {error}"),
        }
        self.note(&result);
        result
    }

    async fn apply(&self, running: &mut Config) -> Result<Changes, ReloadError> {
        if self.source.file.is_none() {
            return Err(ReloadError::NoFile);
        }
        let router = &self.shared.router;
        let state: RouterState = router.send(Snapshot::default()).await.map_err(failed)?;
        if state.is_draining || !self.shared.leadership.is_held() {
            return Err(ReloadError::Draining);
        }
        let (source, layout, listen) = (self.source.clone(), self.layout.clone(), running.listen);
        // A slow disk must not hold up whoever shares this thread.
        let read = move || (source.load_again(listen), History::load(&layout));
        let (loaded, history) = tokio::task::spawn_blocking(read).await.map_err(failed)?;
        let loaded = loaded.map_err(|error| ReloadError::Refused { error })?;
        let warnings = plain(&loaded.render_warnings());
        if !warnings.is_empty() {
            tracing::warn!("{warnings}");
        }
        let (next, changes) = change::plan(running, loaded.config);
        let configuration = wiring::configure(&next, &history, &self.observer);
        router.send(configuration).await.map_err(failed)?;
        let actors = router.send(ListActors).await.map_err(failed)?;
        actors.gpu.do_send(SetTuning(wiring::tuning(&next)));
        self.shared.show(&next);
        *running = next;
        let prepared = prepare::what_lacks(running, router, &[], &self.layout).await;
        prepared.map_err(ReloadError::Failed)?;
        Ok(changes)
    }

    fn note(&self, result: &Result<Changes, ReloadError>) {
        let metrics = &self.shared.metrics;
        let label = if result.is_ok() { "success" } else { "failure" };
        let labels = OfResult {
            result: label.to_owned(),
        };
        metrics.config_reloads.get_or_create(&labels).inc();
        let is_ok = i64::from(result.is_ok());
        metrics.config_last_reload_successful.set(is_ok);
        let since = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let number = last.as_ref().map_or(0, |last| last.number) + 1;
        *last = Some(Reloaded {
            number,
            at: since.as_secs(),
            changes: result.as_ref().ok().cloned(),
            error: result.as_ref().err().map(ToString::to_string),
        });
    }
}

impl Reload for Reloader {
    fn reload(&self) -> LocalBoxFuture<'_, Result<Changes, Failure>> {
        let reloaded = async {
            Self::reload(self).await.map_err(|error| match error {
                ReloadError::Draining => Refusal::Draining.into(),
                ReloadError::NoFile | ReloadError::Refused { .. } | ReloadError::Failed(_) => {
                    Failure::Config(error.to_string())
                }
            })
        };
        reloaded.boxed_local()
    }

    fn last(&self) -> Value {
        json!(*self.last.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn failed(error: impl Into<anyhow::Error>) -> ReloadError {
    ReloadError::Failed(error.into())
}

/// Without the colours of a terminal.
fn plain(text: &str) -> String {
    anstream::adapter::strip_str(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_for_another_address_does_not_open_the_one_that_is_served() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("node.toml");
        let text = "listen = \"127.0.0.1:1\"\n[[models]]\nid = \"m\"\nengine = \"sim\"\n";
        std::fs::write(&file, text).unwrap();
        let source = Source {
            file: Some(file),
            models: Vec::new(),
            overrides: Overrides::default(),
        };
        let here = "127.0.0.1:9".parse().unwrap();
        assert!(source.clone().load_again(here).is_ok());
        let everywhere = "0.0.0.0:9".parse().unwrap();
        let error = source.load_again(everywhere).unwrap_err();
        assert!(error.render().contains("no tenant has an API key"));
    }
}
