//! How far an install has come, told by the bytes on disk.
//!
//! uv prints no machine-readable progress. It unpacks downloads into its cache and links them into
//! the environment at the end, so neither of the two alone grows steadily: the larger counts.

use std::{
    collections::HashSet,
    ffi::OsString,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

pub(super) struct Growth {
    root: PathBuf,
    cache: Option<PathBuf>,
    /// What was in the cache before; the rest is this install's.
    before: HashSet<OsString>,
}

/// Where in its cache uv keeps unpacked wheels; a later uv that does it otherwise only makes the bar
/// less smooth.
const UNPACKED: &str = "archive-v0";

impl Growth {
    pub(super) fn new(root: &Path, uv: &Path) -> Self {
        let cache = cache_dir(uv);
        let before = cache
            .iter()
            .flat_map(|dir| cache_entries(dir))
            .map(|entry| entry.0)
            .collect();
        Self {
            root: root.to_owned(),
            cache,
            before,
        }
    }

    /// Bytes that this install has brought so far.
    pub(super) fn bytes(&self) -> u64 {
        let new = self.cache.iter().flat_map(|dir| cache_entries(dir));
        let new = new.filter(|(name, _)| !self.before.contains(name));
        let in_cache: u64 = new.map(|(_, path)| tree_bytes(&path)).sum();
        in_cache.max(tree_bytes(&self.root))
    }
}

fn cache_dir(uv: &Path) -> Option<PathBuf> {
    let output = Command::new(uv)
        .args(["cache", "dir"])
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    Some(PathBuf::from(text.trim())).filter(|dir| dir.is_absolute())
}

/// Unpacked wheels, and downloads under way (`.tmp*`).
fn cache_entries(cache: &Path) -> Vec<(OsString, PathBuf)> {
    let unpacked = entries(&cache.join(UNPACKED));
    let under_way = entries(cache).filter(|(name, _)| name.to_string_lossy().starts_with(".tmp"));
    unpacked.chain(under_way).collect()
}

fn entries(dir: &Path) -> impl Iterator<Item = (OsString, PathBuf)> + use<> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| (entry.file_name(), entry.path()))
}

/// Bytes on disk under `path`, which may change meanwhile: what has gone counts nothing.
pub(super) fn tree_bytes(path: &Path) -> u64 {
    let mut total = 0;
    let mut pending = vec![path.to_owned()];
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            total += meta.blocks() * 512;
            if meta.is_dir() {
                pending.push(entry.path());
            }
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_came_into_the_cache_since_counts() {
        let dir = tempfile::tempdir().unwrap();
        let (cache, root) = (dir.path().join("cache"), dir.path().join("root"));
        fs::create_dir_all(cache.join(UNPACKED).join("old")).unwrap();
        fs::write(cache.join(UNPACKED).join("old/lib.so"), vec![1; 1 << 20]).unwrap();
        let before = cache_entries(&cache)
            .into_iter()
            .map(|entry| entry.0)
            .collect();
        let growth = Growth {
            root,
            cache: Some(cache.clone()),
            before,
        };
        assert_eq!(growth.bytes(), 0);

        fs::create_dir(cache.join(".tmpAbc")).unwrap();
        fs::write(cache.join(".tmpAbc/lib.so"), vec![1; 1 << 16]).unwrap();
        assert!((1 << 16..1 << 18).contains(&growth.bytes()));
    }

    #[test]
    fn missing_directory_has_no_bytes() {
        assert_eq!(tree_bytes(Path::new("/no/such/dir")), 0);
    }
}
