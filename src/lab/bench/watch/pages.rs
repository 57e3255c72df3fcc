//! What kvwarden and engines tell of themselves.

use std::fs;

use kvwarden_actors::engine::{EngineKind, gauges};
use serde_json::Value;

use super::Look;
use crate::lab::bench::server::get;

/// Of a server that somebody named, it is not known which engine it is.
const ANY: EngineKind = EngineKind::Attach;

/// Where engines find the key they guard their pages with.
const KEYS: [&str; 3] = ["VLLM_API_KEY", "LLAMA_API_KEY", "KVWARDEN_ENGINE_KEY"];

/// An engine's own pages.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Engine {
    pub(super) base: String,
    pub(super) key: Option<String>,
}

/// Of an engine that tells nothing, nothing is known.
pub(super) async fn look_into(engine: &Engine, look: &mut Look) {
    let url = format!("{}/metrics", engine.base);
    if let Ok((200, page)) = get(&url, engine.key.as_deref()).await {
        look.running = gauges::running(&page, ANY).or(look.running);
        look.waiting = gauges::waiting(&page, ANY);
    }
}

/// Where kvwarden's first model runs. The key is new at every start and known to kvwarden and the
/// engine alone; the engine's environment has it, for the same user to read.
pub(super) fn engine_in(status: &Value) -> Option<Engine> {
    let model = first_model(status)?;
    let key = model["pid"].as_u64().and_then(|pid| {
        let environ = fs::read_to_string(format!("/proc/{pid}/environ")).ok()?;
        let entries = environ
            .split('\0')
            .filter_map(|entry| entry.split_once('='));
        let mut keys = entries.filter(|(name, _)| KEYS.contains(name));
        keys.next().map(|(_, key)| key.to_owned())
    });
    Some(Engine {
        base: model["url"].as_str()?.to_owned(),
        key,
    })
}

fn first_model(status: &Value) -> Option<&Value> {
    status["loaded_models"].as_object()?.values().next()
}

/// Takes in kvwarden's own view of its first model.
pub(super) fn read_status(status: &Value, look: &mut Look) {
    if let Some(model) = first_model(status) {
        look.queued = model["waiting"].as_f64();
        look.running = model["running"].as_f64();
        look.slots = model["max_running"].as_f64();
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        process::Stdio,
    };

    use super::*;

    #[test]
    fn kvwarden_tells_where_its_engine_is_and_the_engine_its_key() {
        let mut engine = std::process::Command::new("cat")
            .env("LLAMA_API_KEY", "secret")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // Its environment is there once it runs, which is a little after it was spawned.
        let (mut stdin, mut stdout) = (engine.stdin.take().unwrap(), engine.stdout.take().unwrap());
        stdin.write_all(b"?").unwrap();
        stdout.read_exact(&mut [0]).unwrap();
        let status = serde_json::json!({"loaded_models": {"m": {
            "waiting": 3, "running": 8, "max_running": 8, "url": "http://127.0.0.1:9",
            "pid": engine.id()
        }}});
        let mut look = Look::default();
        read_status(&status, &mut look);
        assert_eq!((look.queued, look.slots), (Some(3.0), Some(8.0)));
        let found = engine_in(&status).unwrap();
        engine.kill().unwrap();
        engine.wait().unwrap();
        assert_eq!(found.base, "http://127.0.0.1:9");
        assert_eq!(found.key.as_deref(), Some("secret"));
    }
}
