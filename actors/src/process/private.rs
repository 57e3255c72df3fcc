//! Files that nobody else may read.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// Replaces a file. A reader sees the old one or the new one.
///
/// # Errors
/// What the system said.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let (fresh, _) = draft(path, content)?;
    fs::rename(fresh, path)
}

/// The same, also after a power cut: contents reach the disk before the name does, and the name before
/// this returns. That takes a disk ten milliseconds and more.
///
/// # Errors
/// What the system said.
pub fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    let (fresh, file) = draft(path, content)?;
    file.sync_all()?;
    fs::rename(fresh, path)?;
    File::open(directory(path))?.sync_all()
}

fn draft(path: &Path, content: &[u8]) -> io::Result<(PathBuf, File)> {
    fs::create_dir_all(directory(path))?;
    let mut fresh = path.to_owned().into_os_string();
    fresh.push(".new");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&fresh)?;
    file.write_all(content)?;
    Ok((fresh.into(), file))
}

fn directory(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("."))
}
