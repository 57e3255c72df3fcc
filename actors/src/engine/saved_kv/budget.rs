//! Which slots stay when there is no room for all: of one model those that cost most to compute
//! again, of the node those that were saved last.

use std::{fs, io, path::Path};

use super::manifest::{Manifest, Slot};

/// What fits into `budget`, the longest first, and what does not.
pub(super) fn divide(mut slots: Vec<Slot>, budget: u64) -> (Vec<Slot>, Vec<Slot>) {
    slots.sort_by_key(|slot| std::cmp::Reverse(slot.tokens));
    let mut left = budget;
    slots.into_iter().partition(|slot| {
        let rest = left.checked_sub(slot.bytes);
        left = rest.unwrap_or(left);
        rest.is_some()
    })
}

/// Removes slots of other models until all models together keep to `budget`: the oldest first, and
/// of those saved together the one that is cheapest to compute again.
pub(super) fn shrink(newest: &Path, budget: u64) -> io::Result<()> {
    let Some(root) = newest.parent() else {
        return Ok(());
    };
    let mut saved = Vec::new();
    for entry in fs::read_dir(root)? {
        let dir = entry?.path();
        let manifest = Manifest::read(&dir);
        saved.extend(manifest.map(|manifest| (dir, manifest)));
    }
    let all = saved.iter().flat_map(|(_, manifest)| &manifest.slots);
    let mut total: u64 = all.map(|slot| slot.bytes).sum();
    saved.retain(|(dir, _)| dir != newest);
    saved.sort_by_key(|(_, manifest)| manifest.saved_at);
    for (dir, mut manifest) in saved {
        manifest
            .slots
            .sort_by_key(|slot| std::cmp::Reverse(slot.tokens));
        let before = manifest.slots.len();
        while total > budget
            && let Some(slot) = manifest.slots.pop()
        {
            total -= slot.bytes;
            let _ = fs::remove_file(dir.join(Slot::file(slot.id)));
        }
        if manifest.slots.len() < before {
            manifest.write(&dir)?;
        }
    }
    Ok(())
}
