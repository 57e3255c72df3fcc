//! Every bound of the data path: its value, and why it is that one.
//!
//! What the configuration sets ([`NodeLimits`](crate::config::NodeLimits)) is not here. Each of these has a
//! test on every way that leads to it; a bound on one of several ways is none.

// === what a request may hold ===

/// How deep the JSON of a request may be nested. llama.cpp is killed by its own recursion from 7,000
/// levels on and takes seconds long before; vLLM refuses more than 64.
pub(super) const MAX_DEPTH: usize = 128;

/// More fields than this at the top of a request are no request. The bound also keeps the search for
/// duplicates short.
pub(super) const MAX_MEMBERS: usize = 256;

/// More choices than this in one request, over all its prompts, are a mistake or an attack; OpenAI allows
/// 128 of one prompt.
pub(super) const MAX_CHOICES: u64 = 128;

/// Turns of one conversation. Agents reach some hundred; each is an object for an engine's template,
/// which walks through them in an interpreter.
pub(super) const MAX_MESSAGES: u64 = 4096;

/// Texts in one request for embeddings, each of which is a sequence to the engine; OpenAI allows as many.
pub(super) const MAX_INPUTS: u64 = 2048;

/// Alternatives that are told of each token. OpenAI allows 20. At 20,000 the answer of llama.cpp takes
/// 2 MB for each token.
pub(super) const MAX_LOGPROBS: u64 = 128;

// === what is told of it ===

/// Bytes of the list of fields that were ignored, in the header of an answer.
pub(super) const MAX_IGNORED: usize = 512;
