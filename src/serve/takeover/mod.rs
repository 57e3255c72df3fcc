//! One kvwarden takes over from another without refusing a connection or cutting a stream.
//!
//! The one that serves listens at `takeover.sock` in the state directory, for its owner alone. Its
//! successor connects; each message is one packet of JSON on a `SOCK_SEQPACKET` socket.
//!
//! ```text
//!  successor                        predecessor
//!     │ ── hello {protocol} ─────────▶ │
//!     │ ◀── offer {listen} + 2 files ─ │  the listening socket, the lock of the state directory
//!     │   looks whether it could serve │
//!     │ ── take ─────────────────────▶ │
//!     │ ◀──────────── wait {reason} ── │  until nothing changes, or 30 s have passed
//!     │ ◀──────────────────── yours ── │  from here on the predecessor touches no engine
//!     │   reads the state, builds actors
//!     │ ── serving ──────────────────▶ │
//!     │ ◀───────────────── farewell ── │  from here on there is no way back
//!     │   accepts, adopts engines      │  answers what it has
//!     │ ◀────────── using {engines} ── │  whenever that changes; these are not stopped
//!     │ ◀─────────────────────── end ── │
//! ```
//!
//! Until `farewell` either side may hang up or die, and the predecessor goes on as if nothing had
//! happened. The lock is one open file that both hold for a while, so nobody else can get between.
//!
//! [`PROTOCOL`] counts versions of this. `hello` with `protocol`, and `refused` with `reason`, stay as
//! they are in all of them: whoever meets another version says so and ends.

mod channel;
pub mod predecessor;
mod quiescence;
pub mod successor;

use std::{collections::BTreeSet, fmt, io, net::SocketAddr, path::PathBuf, time::Duration};

use kvwarden_policy::ModelId;
use serde::{Deserialize, Serialize};

use crate::layout::Layout;

/// The version of what is said.
const PROTOCOL: u32 = 1;

/// How long the other side may take for what it does at once.
const ANSWER: Duration = Duration::from_secs(10);

/// What a successor says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "snake_case")]
enum Request {
    Hello {
        protocol: u32,
        #[serde(default)]
        version: String,
    },
    Take,
    Serving,
}

/// What a predecessor says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "snake_case")]
enum Reply {
    Refused {
        reason: String,
    },
    /// With the listening socket and the lock, in this order.
    Offer {
        listen: SocketAddr,
        version: String,
    },
    Wait {
        reason: String,
    },
    Yours,
    Farewell,
    /// On these engines the predecessor has requests.
    Using {
        engines: BTreeSet<ModelId>,
    },
}

/// Why there was no takeover.
#[derive(Debug, thiserror::Error)]
pub enum TakeoverError {
    /// Somebody has the lock and nobody listens.
    #[error("the kvwarden that serves there does not hand over at {}: {source}", path.display())]
    Absent {
        /// Where it should listen.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The other side knows why not.
    #[error("the other kvwarden refuses: {0}")]
    Refused(String),
    /// The other side's version of the protocol, and ours.
    #[error("the other kvwarden speaks version {theirs} of the takeover, this one {PROTOCOL}")]
    Protocol {
        /// Its version.
        theirs: u32,
    },
    /// The other side says something else than it should.
    #[error("the other kvwarden is not understood: {0}")]
    Nonsense(String),
    /// The other side does not go on.
    #[error("the other kvwarden said nothing for {} s", .0.as_secs())]
    Silent(Duration),
    /// The other side hung up, or died.
    #[error("the other kvwarden hung up")]
    Gone,
    /// Engines that could not be adopted.
    #[error("its engines could not be adopted: {0}")]
    Engines(io::Error),
    /// The address of this configuration.
    #[error("cannot listen on {listen}, which is not where the other listens: {source}")]
    Listen {
        /// Where to.
        listen: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The system.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Something that does not come next.
fn unexpected(said: &impl fmt::Debug) -> TakeoverError {
    TakeoverError::Nonsense(format!("{said:?}"))
}

fn socket(layout: &Layout) -> PathBuf {
    layout.state.join("takeover.sock")
}
