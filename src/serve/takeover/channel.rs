//! Packets of JSON, with open files beside them.

use std::{
    fs,
    io::{self, IoSlice},
    os::{
        fd::{BorrowedFd, OwnedFd},
        unix::fs::PermissionsExt as _,
    },
    path::Path,
    time::Duration,
};

use serde::{Serialize, de::DeserializeOwned};
use tokio_seqpacket::{
    UnixSeqpacket, UnixSeqpacketListener,
    ancillary::{AncillaryMessageWriter, OwnedAncillaryMessage},
};

use super::TakeoverError;

/// The longest packet: a thousand names of engines.
const LONGEST: usize = 128 << 10;

/// Room for the open files of a packet, of which there are two.
const FILES: usize = 128;

/// A connection to the other side.
pub(in crate::serve) struct Channel(UnixSeqpacket);

// === impl Channel ===

impl Channel {
    pub(super) async fn connect(path: &Path) -> io::Result<Self> {
        UnixSeqpacket::connect(path).await.map(Self)
    }

    pub(super) async fn say(&self, what: &impl Serialize) -> io::Result<()> {
        self.say_with(what, &[]).await
    }

    /// Says it and hands open files over.
    pub(super) async fn say_with(
        &self,
        what: &impl Serialize,
        files: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        let packet = serde_json::to_vec(what)?;
        let mut room = [0; FILES];
        let mut ancillary = AncillaryMessageWriter::new(&mut room);
        if !files.is_empty() {
            let added = ancillary.add_fds(files.iter().copied());
            added.map_err(|_| io::Error::other("too many open files for one packet"))?;
        }
        let packet = [IoSlice::new(&packet)];
        let sent = self.0.send_vectored_with_ancillary(&packet, &mut ancillary);
        sent.await.map(drop)
    }

    pub(super) async fn hear<M: DeserializeOwned>(
        &self,
        within: Duration,
    ) -> Result<M, TakeoverError> {
        Ok(self.hear_with(within).await?.0)
    }

    /// The next packet and the open files that came with it.
    pub(super) async fn hear_with<M: DeserializeOwned>(
        &self,
        within: Duration,
    ) -> Result<(M, Vec<OwnedFd>), TakeoverError> {
        let mut packet = vec![0; LONGEST];
        let mut room = [0; FILES];
        let heard = self.0.recv_with_ancillary(&mut packet, &mut room);
        let heard = tokio::time::timeout(within, heard).await;
        let (info, ancillary) = heard.map_err(|_| TakeoverError::Silent(within))??;
        let files = ancillary
            .into_messages()
            .filter_map(|message| match message {
                OwnedAncillaryMessage::FileDescriptors(files) => Some(files),
                OwnedAncillaryMessage::Other(_) => None,
            });
        let files = files.flatten().collect();
        if info.bytes_read() == 0 {
            return Err(TakeoverError::Gone);
        }
        let heard = serde_json::from_slice(&packet[..info.bytes_read()]);
        let heard = heard.map_err(|error| TakeoverError::Nonsense(error.to_string()))?;
        Ok((heard, files))
    }

    /// The process at the other end.
    pub(super) fn peer(&self) -> Option<i32> {
        self.0.peer_cred().ok()?.pid()
    }
}

/// Listens, for this user alone.
pub(super) fn listen(path: &Path) -> io::Result<UnixSeqpacketListener> {
    // Only who holds the state directory's lock comes here, so this is a leftover.
    let _ = fs::remove_file(path);
    let listener = UnixSeqpacketListener::bind(path)?;
    // The directory is private, so nobody else could connect before this.
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

pub(super) async fn accept(listener: &mut UnixSeqpacketListener) -> io::Result<Channel> {
    listener.accept().await.map(Channel)
}
