//! KV that outlives its engine: llama.cpp's slots, saved before an unload and restored after the
//! next load, so that a conversation is not computed again because another model needed the place.
//!
//! A slot is a file and a [`manifest::Slot`] that says what it is of. llama.cpp dies of a file that
//! is cut off and maps a slot number it does not have to another, so nothing reaches it that was
//! not proven first: the manifest is of this model, build and arguments, each file is whole, and
//! numbers are below the count of slots that the engine itself tells. What fails is removed.
//!
//! Saving may fail in any way (a full disk above all) without holding up the unload.

mod budget;
mod manifest;

use std::{io, path::Path, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use self::manifest::{Manifest, Origin, Slot};
use super::{
    Endpoint, KvOnDisk, Launch,
    control::{Control, ControlError},
};

/// All of a save or a restore. A gigabyte takes a second or two.
const WITHIN: Duration = Duration::from_secs(30);
/// A question that costs the engine nothing.
const ANSWER: Duration = Duration::from_secs(5);
/// Below this a prompt is computed in less time than it takes to think about it.
const MIN_TOKENS: u64 = 64;

/// What was saved or restored, for people.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// Slots.
    pub slots: u64,
    /// Tokens in them.
    pub tokens: u64,
    /// Bytes of their files.
    pub bytes: u64,
    /// Why the others are not among them, if there were others.
    pub note: Option<String>,
}

/// Why nothing could be saved or restored.
#[derive(Debug, thiserror::Error)]
enum SnapshotError {
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("the engine does not say what its slots are")]
    Slots,
    #[error("it took longer than {} s", WITHIN.as_secs())]
    Late(#[from] tokio::time::error::Elapsed),
}

/// Where the slots of one model lie, and how much room they have.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shelf<'a> {
    launch: &'a Launch,
    /// For this model.
    budget: u64,
    /// For all models together.
    node_budget: u64,
}

impl<'a> Shelf<'a> {
    /// None where the engine can't or the model may not keep slots.
    pub(crate) fn of(launch: &'a Launch, node_budget: u64) -> Option<Self> {
        let budget = launch.flags.kv_ssd_bytes?;
        (launch.kind.dialect().kv_on_disk == KvOnDisk::Slots).then_some(Self {
            launch,
            budget: budget.min(node_budget),
            node_budget,
        })
    }

    /// Saves the slots of an engine that has nothing in flight and is about to be stopped.
    pub(crate) async fn save(self, endpoint: &Endpoint) -> Kept {
        let control = Control::new(endpoint);
        let saved = tokio::time::timeout(WITHIN, self.try_save(&control)).await;
        self.report("save", saved.unwrap_or_else(|late| Err(late.into())))
    }

    /// Restores what was saved into an engine that serves nobody yet.
    pub(crate) async fn restore(self, endpoint: &Endpoint) -> Kept {
        let control = Control::new(endpoint);
        let restored = tokio::time::timeout(WITHIN, self.try_restore(&control)).await;
        self.report("restore", restored.unwrap_or_else(|late| Err(late.into())))
    }

    fn report(self, what: &str, result: Result<Kept, SnapshotError>) -> Kept {
        let model = &self.launch.served_name;
        match result {
            Ok(kept) => {
                let Kept {
                    slots,
                    tokens,
                    bytes,
                    note,
                } = &kept;
                if *slots > 0 || note.is_some() {
                    tracing::info!(%model, slots, tokens, bytes, ?note, "{what} of KV");
                }
                kept
            }
            Err(error) => {
                tracing::warn!(%model, %error, "no {what} of KV");
                Kept {
                    note: Some(error.to_string()),
                    ..Kept::default()
                }
            }
        }
    }

    async fn try_save(self, control: &Control<'_>) -> Result<Kept, SnapshotError> {
        let dir = &self.launch.kv_dir;
        let idle = idle_slots(control).await?;
        let origin = blocking(self.origin()).await?;
        // Until the new manifest is written nothing here counts as whole.
        let empty = dir.clone();
        blocking(move || manifest::clear(&empty)).await?;
        let prefill = prefill_seconds_per_token(control).await;
        let mut kept = Kept::default();
        let mut slots = Vec::new();
        for id in idle {
            match save_slot(control, dir, id).await {
                Ok(slot) if is_worth_it(&slot, prefill) => slots.push(slot),
                Ok(slot) => discard(dir, slot.id).await,
                Err(error) => {
                    discard(dir, id).await;
                    kept.note = Some(error.to_string());
                }
            }
        }
        let (keep, drop) = budget::divide(slots, self.budget);
        for slot in drop {
            kept.note = Some(format!("no room for slot {}", slot.id));
            discard(dir, slot.id).await;
        }
        for slot in &keep {
            kept.add(slot);
        }
        let (dir, node_budget) = (dir.clone(), self.node_budget);
        blocking(move || {
            Manifest::seal(&dir, origin, keep)?;
            budget::shrink(&dir, node_budget)
        })
        .await?;
        Ok(kept)
    }

    async fn try_restore(self, control: &Control<'_>) -> Result<Kept, SnapshotError> {
        let dir = self.launch.kv_dir.clone();
        let expected = blocking(self.origin()).await?;
        let proven = blocking(move || Ok(manifest::prove(&dir, &expected))).await?;
        let mut kept = Kept {
            note: proven.refused,
            ..Kept::default()
        };
        if proven.slots.is_empty() {
            return Ok(kept);
        }
        let there = idle_slots(control).await?;
        for slot in proven.slots {
            if !there.contains(&slot.id) {
                kept.note = Some(format!("the engine has no free slot {}", slot.id));
                continue;
            }
            match restore_slot(control, &slot).await {
                Ok(()) => kept.add(&slot),
                Err(reason) => {
                    discard(&self.launch.kv_dir, slot.id).await;
                    kept.note = Some(reason);
                }
            }
        }
        Ok(kept)
    }

    /// What a snapshot must be of to be read by this engine.
    fn origin(self) -> impl FnOnce() -> io::Result<Origin> + Send + 'static {
        let launch = self.launch.clone();
        move || Origin::of(&launch)
    }
}

impl Kept {
    fn add(&mut self, slot: &Slot) {
        self.slots += 1;
        self.tokens += slot.tokens;
        self.bytes += slot.bytes;
    }
}

/// The numbers of slots that exist and compute nothing.
async fn idle_slots(control: &Control<'_>) -> Result<Vec<u64>, SnapshotError> {
    let slots = control.get("/slots", ANSWER).await?;
    let slots = slots.as_array().ok_or(SnapshotError::Slots)?;
    let idle = slots.iter().filter(|slot| slot["is_processing"] == false);
    Ok(idle.filter_map(|slot| slot["id"].as_u64()).collect())
}

async fn save_slot(control: &Control<'_>, dir: &Path, id: u64) -> Result<Slot, SnapshotError> {
    let order = json!({ "filename": Slot::file(id) });
    let path = format!("/slots/{id}?action=save");
    let answer = control.post(&path, &order, WITHIN).await?;
    let file = dir.join(Slot::file(id));
    let seconds = answer["timings"]["save_ms"].as_f64().unwrap_or(0.0) / 1000.0;
    let tokens = answer["n_saved"].as_u64().unwrap_or(0);
    let (bytes, checksum) = blocking(move || manifest::measure(&file)).await?;
    Ok(Slot {
        id,
        tokens,
        bytes,
        checksum,
        seconds,
    })
}

/// A slot is brought back in about the time it took to save it.
#[expect(clippy::cast_precision_loss, reason = "tokens in a time")]
fn is_worth_it(slot: &Slot, prefill_seconds_per_token: f64) -> bool {
    let prefill = slot.tokens as f64 * prefill_seconds_per_token;
    slot.tokens >= MIN_TOKENS && prefill > 2.0 * slot.seconds
}

/// What a token of a prompt has cost so far; much, where the engine does not say.
async fn prefill_seconds_per_token(control: &Control<'_>) -> f64 {
    let page = control.text("/metrics", ANSWER).await.unwrap_or_default();
    let read = |name: &str| -> Option<f64> {
        let lines = page.lines().filter_map(|line| line.strip_prefix(name));
        lines.filter_map(|rest| rest.trim().parse().ok()).next()
    };
    let seconds = read("llamacpp:prompt_seconds_total ");
    let tokens = read("llamacpp:prompt_tokens_total ").filter(|tokens| *tokens > 0.0);
    seconds
        .zip(tokens)
        .map_or(1.0, |(seconds, tokens)| seconds / tokens)
}

async fn restore_slot(control: &Control<'_>, slot: &Slot) -> Result<(), String> {
    let order = json!({ "filename": Slot::file(slot.id) });
    let path = format!("/slots/{}?action=restore", slot.id);
    let answer = control.post(&path, &order, WITHIN).await;
    let answer = answer.map_err(|error| error.to_string())?;
    if answer["n_restored"] == slot.tokens && answer["n_read"] == slot.bytes {
        return Ok(());
    }
    // Whatever is in it now, it is not what was saved.
    let path = format!("/slots/{}?action=erase", slot.id);
    let erased = control.post(&path, &Value::Null, ANSWER).await;
    erased.map_err(|error| error.to_string())?;
    Err(format!("slot {} came back as {answer}", slot.id))
}

async fn discard(dir: &Path, id: u64) {
    let file = dir.join(Slot::file(id));
    // One that stays is overwritten or removed by the next save.
    let _ = blocking(move || std::fs::remove_file(file)).await;
}

/// Makes the directory that an engine keeps KV in; llama.cpp does not start without it.
///
/// # Errors
/// When it can't be made.
pub(crate) fn prepare(launch: &Launch) -> io::Result<()> {
    match launch.flags.kv_ssd_bytes {
        Some(_) => manifest::make_private(&launch.kv_dir),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;

/// Off the actors' thread: files of gigabytes are read.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(io::Error::other(error)))
}
