//! The shim's Unix socket: JSON lines in both directions.

use std::{
    fs::DirBuilder,
    io,
    os::unix::{ffi::OsStrExt, fs::DirBuilderExt, net::UnixStream as BlockingStream},
    path::Path,
};

use kvwarden_actors::process::shim::{ShimCommand, ShimEvent};
use nix::sys::stat::{Mode, umask};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    sync::{mpsc, watch},
};

/// `sun_path` holds 108 bytes, the last a NUL (unix(7)).
const PATH_BYTES: usize = 107;

/// What one connection may send in all: a `stop` is under 100 bytes and comes once or twice.
const COMMAND_BYTES: u64 = 64 << 10;

/// Listens at `path`, for this user only.
pub(super) fn bind(path: &Path) -> Result<UnixListener, String> {
    let length = path.as_os_str().as_bytes().len();
    if length > PATH_BYTES {
        return Err(format!(
            "the socket path {} has {length} bytes and a Unix socket's ends at {PATH_BYTES}: \
             choose a shorter state directory (KVWARDEN_STATE_DIR)",
            path.display()
        ));
    }
    let failed = |error: io::Error| format!("can't listen at {}: {error}", path.display());
    if let Some(dir) = path.parent() {
        let mut builder = DirBuilder::new();
        let builder = builder.recursive(true).mode(0o700);
        builder.create(dir).map_err(failed)?;
    }
    // A crash leaves the file behind; only a listener makes it a socket that answers.
    if BlockingStream::connect(path).is_ok() {
        return Err(format!(
            "another engine's supervisor listens at {}",
            path.display()
        ));
    }
    let _ = std::fs::remove_file(path);
    // Not chmod afterwards: there would be a moment in which others can connect.
    let usual = umask(Mode::from_bits_truncate(0o177));
    let listener = UnixListener::bind(path);
    umask(usual);
    listener.map_err(failed)
}

/// Speaks with one client until it hangs up or talks nonsense: first what has happened, then what
/// happens; in between it may command.
pub(super) async fn serve(
    stream: UnixStream,
    mut events: watch::Receiver<Vec<ShimEvent>>,
    commands: mpsc::Sender<ShimCommand>,
) {
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read.take(COMMAND_BYTES)).lines();
    let mut told = 0;
    loop {
        let news: Vec<ShimEvent> = events.borrow_and_update()[told..].to_vec();
        told += news.len();
        for event in news {
            let Ok(mut line) = serde_json::to_vec(&event) else {
                return;
            };
            line.push(b'\n');
            if write.write_all(&line).await.is_err() {
                return;
            }
        }
        tokio::select! {
            changed = events.changed() => if changed.is_err() { return },
            line = lines.next_line() => {
                let Some(line) = line.ok().flatten() else { return };
                let Ok(command) = serde_json::from_str(&line) else { return };
                if commands.send(command).await.is_err() { return }
            }
        }
    }
}
