//! Stub replaced by the branch `shim`.
use super::shim::*;
use std::{path::Path, time::Duration};
pub(super) struct Child;
#[derive(Debug, thiserror::Error)]
#[error("x")]
pub(super) struct LaunchError;
impl Child {
    pub(super) async fn start(_: &Path, _: &ShimSpec) -> Result<Self, LaunchError> {
        Err(LaunchError)
    }
    pub(super) async fn next_event(&mut self) -> Option<ShimEvent> {
        None
    }
    pub(super) async fn stop(&mut self, _: Duration) {}
}
