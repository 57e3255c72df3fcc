//! Names that travel through every layer. Cheap to clone: each is one reference count.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};

/// Who a request is accounted to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct TenantId(Arc<str>);

/// One configured model; the canonical name, never an alias.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ModelId(Arc<str>);

/// One device with memory of its own, a GPU or a MIG slice, by its UUID: that is stable across
/// reboots, unlike its index. Without a GPU, whatever stands for the host's memory.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DeviceId(Arc<str>);

/// Which start of a model's engine a message is about. Messages of an older one are stale.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
pub struct Generation(pub u64);

impl Generation {
    /// The generation of the next start.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

macro_rules! name {
    ($name:ident) => {
        impl $name {
            /// The name as written in the configuration.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// The same, for one more reference.
            #[must_use]
            pub fn shared(&self) -> Arc<str> {
                Arc::clone(&self.0)
            }
        }

        impl<T: Into<Arc<str>>> From<T> for $name {
            fn from(name: T) -> Self {
                Self(name.into())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}
name!(TenantId);
name!(ModelId);
name!(DeviceId);
