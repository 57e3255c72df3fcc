//! Every bound of the data path: its value, and why it is that one.
//!
//! What the configuration sets ([`NodeLimits`](crate::config::NodeLimits)) is not here. Each of these has a
//! test on every way that leads to it; a bound on one of several ways is none.

// === what a request may hold ===

/// More fields than this at the top of a request are no request. The bound also keeps the search for
/// duplicates short.
pub(super) const MAX_MEMBERS: usize = 256;

/// More choices than this in one request, over all its prompts, are a mistake or an attack; OpenAI allows
/// 128 of one prompt.
pub(super) const MAX_CHOICES: u64 = 128;
