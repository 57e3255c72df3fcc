//! What a saved slot is of, and whether its file is what was saved.

use std::{
    fs::{self, DirBuilder, File},
    io::{self, Read},
    os::unix::fs::DirBuilderExt,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

use crate::{
    engine::{Launch, Start},
    files::{self, Durability, Readers},
};

const MANIFEST: &str = "manifest.json";
/// Another format has another number; an older one is refused.
const VERSION: u32 = 1;
/// Of a model file so much is read to tell it from another: its header and some weights.
const HEAD: u64 = 1 << 20;

/// What has to be the same for a slot to mean the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Origin {
    model: FileId,
    /// The engine's version.
    build: String,
    /// Its arguments; context, slots and number types of the KV cache are among them.
    args: Vec<String>,
}

/// A file, told from others without reading gigabytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct FileId {
    bytes: u64,
    modified: u128,
    head: u32,
}

/// One saved slot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Slot {
    /// Its number.
    pub(super) id: u64,
    /// Tokens in it.
    pub(super) tokens: u64,
    /// The file's length.
    pub(super) bytes: u64,
    /// The file's CRC-32. It finds accidents; what is in this directory is written by nobody else.
    pub(super) checksum: u32,
    /// How long it took to save.
    pub(super) seconds: f64,
}

/// Everything saved of one model.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Manifest {
    version: u32,
    origin: Origin,
    /// Seconds since 1970.
    pub(super) saved_at: u64,
    pub(super) slots: Vec<Slot>,
}

/// What is left after every doubt.
#[derive(Debug, Default)]
pub(super) struct Proven {
    pub(super) slots: Vec<Slot>,
    /// Why something was removed.
    pub(super) refused: Option<String>,
}

// === impl Origin ===

impl Origin {
    pub(super) fn of(launch: &Launch) -> io::Result<Self> {
        let start = Start {
            port: 0,
            key: "",
            gpus: &[],
        };
        Ok(Self {
            model: FileId::of(Path::new(&launch.model))?,
            build: launch.build.clone(),
            args: launch.command(start, []).args,
        })
    }
}

impl FileId {
    fn of(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        let modified = metadata.modified()?.duration_since(UNIX_EPOCH);
        Ok(Self {
            bytes: metadata.len(),
            modified: modified.map_or(0, |since| since.as_nanos()),
            head: checksum(file.take(HEAD))?.1,
        })
    }
}

// === impl Slot ===

impl Slot {
    /// Its file's name, made of nothing but its number.
    pub(super) fn file(id: u64) -> String {
        format!("slot-{id}.bin")
    }
}

// === impl Manifest ===

impl Manifest {
    /// Writes the manifest of `slots`, whose files are there. From then on they count.
    pub(super) fn seal(dir: &Path, origin: Origin, slots: Vec<Slot>) -> io::Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let manifest = Self {
            version: VERSION,
            origin,
            saved_at: now.map_or(0, |since| since.as_secs()),
            slots,
        };
        manifest.write(dir)
    }

    /// The manifest in `dir`. None where there is none, or none that can be read.
    pub(super) fn read(dir: &Path) -> Option<Self> {
        let text = fs::read(dir.join(MANIFEST)).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Half a manifest is never seen under its name.
    pub(super) fn write(&self, dir: &Path) -> io::Result<()> {
        let content = serde_json::to_vec(self)?;
        let path = dir.join(MANIFEST);
        files::replace(&path, &content, Readers::Owner, Durability::None)
    }
}

/// A directory that nobody else can read: KV is what clients said.
pub(super) fn make_private(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// Removes the files in `dir`, and makes it if it is not there.
pub(super) fn clear(dir: &Path) -> io::Result<()> {
    make_private(dir)?;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// The slots in `dir` that are of `expected` and whole. Everything else is removed.
pub(super) fn prove(dir: &Path, expected: &Origin) -> Proven {
    if !dir.join(MANIFEST).exists() {
        return Proven::default();
    }
    let refuse = |reason: &str| {
        // What can't be removed is refused again at the next load.
        let _ = clear(dir);
        let refused = Some(reason.to_owned());
        Proven {
            refused,
            ..Proven::default()
        }
    };
    let Some(manifest) = Manifest::read(dir).filter(|found| found.version == VERSION) else {
        return refuse("the manifest can't be read");
    };
    if let Some(reason) = manifest.origin.difference(expected) {
        return refuse(reason);
    }
    let mut proven = Proven::default();
    for slot in manifest.slots {
        let file = dir.join(Slot::file(slot.id));
        match measure(&file) {
            Ok(found) if found == (slot.bytes, slot.checksum) => proven.slots.push(slot),
            Ok(_) | Err(_) => {
                let _ = fs::remove_file(file);
                proven.refused = Some(format!("the file of slot {} is damaged", slot.id));
            }
        }
    }
    proven
}

impl Origin {
    fn difference(&self, expected: &Self) -> Option<&'static str> {
        let same = [
            (
                self.model == expected.model,
                "it was saved of another model file",
            ),
            (
                self.build == expected.build,
                "it was saved by another build of the engine",
            ),
            (
                self.args == expected.args,
                "it was saved under other arguments",
            ),
        ];
        same.into_iter()
            .find(|(is_same, _)| !is_same)
            .map(|(_, reason)| reason)
    }
}

/// Length and checksum of a file; a link is none.
pub(super) fn measure(path: &Path) -> io::Result<(u64, u32)> {
    if !fs::symlink_metadata(path)?.is_file() {
        return Err(io::Error::other("not a file"));
    }
    checksum(File::open(path)?)
}

fn checksum(mut file: impl Read) -> io::Result<(u64, u32)> {
    let mut hasher = crc32fast::Hasher::new();
    let mut buffer = vec![0; 1 << 20];
    let mut length = 0;
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok((length, hasher.finalize())),
            read => {
                hasher.update(&buffer[..read]);
                length += read as u64;
            }
        }
    }
}
