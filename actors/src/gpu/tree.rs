//! Stub replaced by the branch `shim`.
