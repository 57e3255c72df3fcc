//! Every bound of the data path: its value, and why it is that one.
//!
//! What the configuration sets ([`NodeLimits`](crate::config::NodeLimits)) is not here, nor what holds of
//! connections whatever goes over them: clients' have that in [`server`](super::server) and
//! [`socket`](super::socket), engines' in [`upstream`](super::upstream). Each of these has a
//! test on every way that leads to it; a bound on one of several ways is none.

use std::time::Duration;

// === what a request may hold ===

/// How deep the JSON of a request may be nested. llama.cpp is killed by its own recursion from 7,000
/// levels on and takes seconds long before; vLLM refuses more than 64.
pub(super) const MAX_DEPTH: usize = 128;

/// More fields than this at the top of a request are no request. The bound also keeps the search for
/// duplicates short.
pub(super) const MAX_MEMBERS: usize = 256;

/// Bytes of a model's name, which errors repeat; the configuration allows fewer.
pub(super) const MAX_MODEL: usize = 512;

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

/// Bytes of a request's header lines, of which usual ones have 1 KiB. The HTTP library reads 128 KiB or 96
/// lines and then answers 431 without a body; below that we answer.
pub(super) const MAX_HEADERS: usize = 64 << 10;

// === what is told of it ===

/// Bytes of the list of fields that were ignored, in the header of an answer.
pub(super) const MAX_IGNORED: usize = 512;

// === what an answer may hold ===

/// Bytes of an answer that are held at once: a whole one, one that is put together from events, an event
/// whose end has not come. Image models put 8 MB into one event, and 50,000 tokens with twenty
/// alternatives each are 30 MiB.
pub(super) const MAX_ANSWER: usize = 64 << 20;

/// Bytes of an error that an engine tells, which takes many times as much once it is read.
pub(super) const MAX_ERROR: usize = 1 << 20;

/// Bytes of blanks in front of an answer. Servers that keep a connection alive by them send one a second.
pub(super) const MAX_BLANK: usize = 16 << 10;

/// Bytes of comments and roles before the first token. A ping every second for a day is a tenth of it.
pub(super) const MAX_BEFORE_TOKEN: usize = 1 << 20;

/// Bytes that may wait for a client; one event more may be on top. A few hundred tokens: a client
/// that reads in bursts is not held up, and ten thousand that don't read hold 640 MiB.
pub(super) const MAX_BEHIND: usize = 64 << 10;

/// How often a request goes back into the queue because its engine went away before the first
/// token. A request that kills its engine must not do so for ever.
pub(super) const MAX_RETRIES: u32 = 2;

// === how long an engine may take ===

/// How long a streaming client hears nothing before it is told to wait. SDKs and proxies between allow
/// ten seconds and more.
pub(super) const SILENCE: Duration = Duration::from_secs(5);

/// How many times `limits.stream_idle_timeout` an engine may compute of which no token is seen: until the
/// head of its answer, within a whole one, while it sends nothing but comments. At the default of two
/// minutes it is as long as OpenAI's SDKs wait.
pub(super) const UNSEEN: u32 = 5;

/// How long the end of a body may come after the end of its answer. The connection is used again if it does.
pub(super) const LINGER: Duration = Duration::from_secs(1);

/// How long an actor may take to say where a request stands in line; without it the client is told less.
pub(super) const STANDING: Duration = Duration::from_secs(1);

/// How many requests ahead of one are counted before it is "or more".
pub(super) const MAX_AHEAD: usize = 1000;

// === what an engine's connection may say beside an answer ===

/// Longest head of an answer, and longest text between two chunks or behind the last. An engine's is a few
/// hundred bytes; nginx and HAProxy take 8 to 16 KiB.
pub(super) const MAX_HEAD: usize = 64 << 10;

/// More fields than this in one head are a mistake.
pub(super) const MAX_HEAD_FIELDS: usize = 100;

/// Heads (1xx) that only announce the answer. One would do.
pub(super) const MAX_INTERIM: usize = 8;

/// Connections to one engine that a worker keeps for its next requests: as many as engines run requests
/// at once (vLLM's `max_num_seqs` is 256 to 1,024). Each holds a descriptor and under a kilobyte, for 3 s.
pub(super) const MAX_IDLE_CONNECTIONS: usize = 1024;
