//! Files that are replaced as a whole, and files that nobody else may read.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

/// Who may read a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readers {
    /// Its owner alone.
    Owner,
    /// Whom the process's umask lets.
    Umask,
}

/// What outlives a power cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// The old file or the new one, or an empty one.
    None,
    /// Contents reach the disk before the name does, and the name before this returns. That takes a
    /// disk ten milliseconds and more.
    Synced,
}

/// Replaces a file, and makes its directory. A reader sees the old one or the new one.
///
/// # Errors
/// What the system said.
pub fn replace(
    path: &Path,
    content: &[u8],
    readers: Readers,
    durability: Durability,
) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(directory)?;
    let mut new = path.to_owned().into_os_string();
    new.push(".new");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(match readers {
            Readers::Owner => 0o600,
            Readers::Umask => 0o666,
        })
        .open(&new)?;
    file.write_all(content)?;
    if durability == Durability::Synced {
        file.sync_all()?;
    }
    fs::rename(new, path)?;
    if durability == Durability::Synced {
        File::open(directory)?.sync_all()?;
    }
    Ok(())
}

/// Opens a file of which only its owner reads, to write at its end, and makes its directory.
///
/// # Errors
/// What the system said.
pub fn append(path: &Path) -> io::Result<File> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn file_is_replaced_whole_and_nothing_is_left_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/file");
        for text in ["a longer one", "short"] {
            replace(&path, text.as_bytes(), Readers::Owner, Durability::Synced).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        assert_eq!(mode(&path), 0o600);
    }

    #[test]
    fn file_for_all_goes_by_the_umask_and_a_private_one_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let shared = dir.path().join("shared");
        replace(&shared, b"", Readers::Umask, Durability::None).unwrap();
        let plain = dir.path().join("plain");
        fs::write(&plain, "").unwrap();
        assert_eq!(mode(&shared), mode(&plain));
        append(&dir.path().join("log")).unwrap();
        assert_eq!(mode(&dir.path().join("log")), 0o600);
    }
}
