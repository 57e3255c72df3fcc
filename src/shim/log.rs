//! The engine's output on disk: three files of at most 10 MiB, and no reason to wait.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::PathBuf,
};

use kvwarden_actors::files;

/// Size at which a file is put aside. A vLLM start writes some 100 KiB, so one file holds weeks.
const FILE_BYTES: u64 = 10 << 20;

/// Files put aside: `LOG.1` is the younger. With the current one, 30 MiB per model.
const OLD_FILES: u32 = 2;

/// The current log file.
#[derive(Debug)]
pub(super) struct Log {
    path: PathBuf,
    file: Option<File>,
    size: u64,
    /// Bytes that could not be written since the last that could.
    lost: u64,
}

impl Log {
    /// Goes on where an earlier start of the model left off.
    pub(super) fn open(path: PathBuf) -> Self {
        let mut log = Self {
            path,
            file: None,
            size: 0,
            lost: 0,
        };
        // A log that can't be opened is one that loses everything until it can be.
        let _ = log.reopen();
        log
    }

    /// Writes, or drops and counts: a full disk must not stop an engine that serves.
    pub(super) fn write(&mut self, bytes: &[u8]) {
        let line_begins = bytes.first() != Some(&b'\n');
        if self.lost > 0 && line_begins {
            let note = format!("\nkvwarden: {} bytes of output were lost here\n", self.lost);
            if self.append(note.as_bytes()).is_err() {
                self.lost += bytes.len() as u64;
                return;
            }
            self.lost = 0;
        }
        if let Err(lost) = self.append(bytes) {
            self.lost += lost;
        }
    }

    /// How many bytes did not get through.
    fn append(&mut self, bytes: &[u8]) -> Result<(), u64> {
        if self.size + bytes.len() as u64 > FILE_BYTES {
            self.rotate();
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            let Ok(written) = self.write_some(rest) else {
                return Err(rest.len() as u64);
            };
            self.size += written as u64;
            rest = &rest[written..];
        }
        Ok(())
    }

    fn write_some(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.file.is_none() {
            self.reopen()?;
        }
        let file = self.file.as_mut().ok_or(io::ErrorKind::NotFound)?;
        match file.write(bytes) {
            Ok(0) => Err(io::ErrorKind::WriteZero.into()),
            result => result,
        }
    }

    /// Every file moves up one number. Where a rename fails the current file is cut instead, so
    /// that the log stays bounded in any case.
    fn rotate(&mut self) {
        for number in (1..OLD_FILES).rev() {
            let _ = fs::rename(self.numbered(number), self.numbered(number + 1));
        }
        if fs::rename(&self.path, self.numbered(1)).is_err()
            && let Some(file) = &self.file
        {
            let _ = file.set_len(0);
        }
        self.file = None;
        self.size = 0;
    }

    fn numbered(&self, number: u32) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{number}"));
        name.into()
    }

    /// Only for us: engines log prompts.
    fn reopen(&mut self) -> io::Result<()> {
        let file = files::append(&self.path)?;
        self.size = file.metadata()?.len();
        self.file = Some(file);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flood_is_bounded_and_the_newest_output_survives() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = Log::open(dir.path().join("engine.log"));
        let chunk = [b'x'; 1 << 16];
        for _ in 0..(50 << 20 >> 16) {
            log.write(&chunk);
        }
        log.write(b"the end\n");
        let sizes = fs::read_dir(dir.path()).unwrap();
        let sizes: Vec<u64> = sizes
            .map(|file| file.unwrap().metadata().unwrap().len())
            .collect();
        assert_eq!(sizes.len(), 3);
        assert!(sizes.iter().all(|size| *size <= FILE_BYTES), "{sizes:?}");
        let current = fs::read(dir.path().join("engine.log")).unwrap();
        assert!(current.ends_with(b"the end\n"));
    }

    #[test]
    fn full_disk_drops_counts_and_says_so_later() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("engine.log");
        std::os::unix::fs::symlink("/dev/full", &path).unwrap();
        let mut log = Log::open(path.clone());
        log.write(b"lost\n");
        log.write(b"lost too\n");
        // The disk has room again.
        fs::remove_file(&path).unwrap();
        log.file = None;
        log.write(b"kept\n");
        assert_eq!(
            fs::read_to_string(&path).unwrap(),
            "\nkvwarden: 14 bytes of output were lost here\nkept\n"
        );
    }

    #[test]
    fn log_that_cannot_be_opened_loses_and_goes_on() {
        let mut log = Log::open("/proc/no/such/place/engine.log".into());
        log.write(b"lost\n");
        assert_eq!(log.lost, 5);
    }
}
