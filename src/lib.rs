//! kvwarden shares the GPUs of one node fairly between tenants.
//!
//! It stands between OpenAI clients and the inference engines of one machine. It starts and
//! supervises the engines, decides whose request goes next and which models are in memory, and
//! serves one API in front of them. This page is the one to read first; each folder begins with one
//! of its own.
//!
//! ```text
//!  clients ── HTTP ──▶ http ── Admit ──▶ Router ── Reserve ──▶ Tenant ── Enqueue ──┐
//!                       │ ▲                                                        ▼
//!                       │ └──────────────────────── Permit ────────────────────  Model
//!                       │                                                        │  ▲
//!                       │   Gpu ◀─── Demand ──── Router ◀──── Demand ────────────┤  │
//!                       │    │ └─ Grant, Reclaim ─▶ Router ── Grant, Reclaim ────┼─▶│
//!                       │    │ ◀────── Spawn, Signal ────────────────────────────┘  │
//!                       │    ▼                                                      │
//!                       │   one task an engine ───────── EngineNews ────────────────┘
//!                       │    │ Unix socket
//!                       │    ▼
//!                       │   shim ── parent of ──▶ engine
//!                       └── bytes of requests and answers ─▶ ┘
//! ```
//!
//! A permit gives back what it holds when it is dropped: it tells the Model `FirstToken` and
//! `SlotFreed`, and the Tenant `Settle`. Demand, Grant and Reclaim go by the Router, since the Gpu
//! knows engines by name only.
//!
//! # Where things are
//!
//! Cargo keeps the direction between the crates, `integration/tests/layers` between their folders: each
//! imports only what stands below it in this table.
//!
//! | crate, folder | is | never |
//! |---|---|---|
//! | `kvwarden` (src) | the outside world: argv, files, HTTP, Prometheus' text | a decision |
//! | [`cli`] | the commands, one file each | |
//! | `lab` | `bench` and `replay`: measures a server, or the planner in virtual time | serves anybody |
//! | `serve` | what `kvwarden serve` is made of: start, reload, takeover, drain | anything once a request |
//! | `http` | the API, and a request's way through it | `serve` |
//! | `metrics` | every metric, registered once | |
//! | `journal` | usage and events, in one SQLite file | text of requests |
//! | `config` | the file, its checks, and what the rest is told | starts or fetches anything |
//! | `weights`, `install` | what a model weighs; engines' private environments | |
//! | `shim` | the process that is the parent of one engine | threads |
//! | `sim` | the simulated engine, which speaks vLLM's API | |
//! | `layout`, `terminal`, [`panic`](mod@panic) | directories; how commands print; the end of the process | |
//! | `kvwarden-actors` (actors) | who tells whom what | HTTP of clients, files of users |
//! | `router`, `tenant`, `model`, `gpu` | the actors; `protocol` has their messages, `ticket` what travels in them | waits inside a handler |
//! | `ledger`, `observer`, `overview` | what the actors tell the journal, the metrics and `/kvwarden/status` | |
//! | `process` | engines as processes: started, adopted, supervised, ended | decides whether one runs |
//! | `engine` | one file for each engine: what kvwarden has to know of it | |
//! | `device` | GPUs as NVML sees them | |
//! | `kvwarden-policy` (actors/policy) | the decisions, as pure functions of their arguments | an actor, a socket, a clock |
//! | `simulation` | engines and swaps in virtual time, which the tests run on | is part of serving |
//! | `scheduling` | the fair queue: which request goes next, and when | |
//! | `residency` | the planner: which models are in memory | |
//! | `lifecycle`, `startup`, `stall`, `backoff`, `failure` | one engine's states, and what its end means | |
//! | `bucket`, `quota`, `tier`, `cost`, `routing` | limits of tenants, what a request costs, to which engine it goes | |
//! | `kvwarden-integration` (integration) | the real binary against real engines; a table of what is tested where | |
//!
//! # What always holds
//!
//! - No byte of a request or an answer passes a mailbox: actors hand out the right to use an engine
//!   (a [`Permit`](kvwarden_actors::Permit)), and the HTTP task streams by itself.
//! - Whoever drops a ticket or a permit gives back what it holds, so a client that hangs up frees
//!   its place without any code for it.
//! - Every engine is the child of a shim that kills its whole tree when kvwarden is gone and no other
//!   adopts it in time.
//! - At any moment one process is in charge of the engines of a state directory: also while another
//!   takes over (`serve::takeover`), and none stops an engine that the other still streams from.
//! - Only an exact list of routes reaches an engine, and engines listen on loopback only, with a
//!   key of their own per start.
//! - Every queue, buffer and map that a client or an engine can grow has a limit: in the configuration, or in
//!   `src/http/limits.rs`.
//!
//! # Where to look
//!
//! | for | look at |
//! |---|---|
//! | what the fair queue charges | `Price` in `actors/policy/src/scheduling/settings.rs`; at dispatch `fair/mod.rs`, then `fair/running.rs` |
//! | what the buckets of a tenant charge | `actors/policy/src/cost.rs` and `bucket.rs`, called by `actors/src/tenant.rs` |
//! | why a model was evicted | the line "makes room" of the log, `why` in the event log (`kvwarden replay --export`); `Why` in `actors/policy/src/residency/snapshot.rs` has the reasons, `victims.rs` the choice, `value.rs` what it goes by |
//! | what a client sees when its engine dies | before the first token the request is tried again (`src/http/exchange.rs`), after it the stream ends with an error event (`src/http/relay/`); `src/http/refusal.rs` has every status and code |
//! | what counts as a token, an end, an error of an answer | `src/http/format/event.rs`; `assemble.rs` beside it puts an answer together |
//! | what an engine is charged for an answer that nothing is seen of | `actors/policy/src/scheduling/pace.rs` and `progress.rs` |
//! | how large or slow a request or an answer may be | `src/http/limits.rs`, and `[limits]` of the configuration |
//! | which fields of a request reach an engine | `actors/src/engine/fields.rs` |
//! | what a request costs | `benches/peers` |
//! | why an engine ended | `actors/src/process/end.rs`, by the sentences in `actors/policy/src/failure.rs` |
//! | what a request leaves in the database | `Spent` in `actors/src/ticket.rs`, then `src/journal/usage.rs`; `src/journal/store.rs` has the tables, of which a column more is a row more in `LAYOUTS` |
//!
//! # How to add
//!
//! **An engine.** Write `actors/src/engine/NAME.rs` with a `static DIALECT`: the keys it takes, the flags
//! that are kvwarden's, its arguments and environment, the request fields it lets through, its quirks as a server, how it sleeps, the names
//! of its gauges. Give it a row in `EngineKind` (`actors/src/engine/mod.rs`), in its `ALL` and in its
//! `dialect`. If kvwarden is to install it, add a recipe to `src/install/recipe.rs`. The sentences it
//! dies with go to `SIGNS` (`actors/policy/src/failure.rs`), with a log of it in the corpus
//! (`actors/policy/src/failure/corpus`). Name it in the comments of `src/config/file.rs` that list the
//! engines, and in README's table. Start it for real in `integration/tests/real_engines.rs`.
//!
//! **A metric.** Add a field and its line in `Metrics::register` (`src/metrics.rs`). What a request counts
//! goes through a handle in `src/http/series.rs`; what an actor knows goes into its observable state
//! and from there, at a scrape, through `src/http/admin/observe.rs`. Then README's list;
//! `BLESS=1 cargo test -p kvwarden-integration --test sim golden` writes `golden/metrics.txt` anew.
//!
//! **A configuration key.** Add a field with its comment, type and default to its table in
//! `src/config/file.rs`: the comment is the reference. Check and resolve it in `src/config/check`, into
//! a field in `src/config/resolved.rs`, and pass it on in `src/serve/wiring.rs` to the parameters of the
//! actor that needs it. A key of a model that some engines alone understand becomes a field of
//! `EngineFlags`, and their dialects list it in `takes`. `src/config/change.rs` says what a reload does
//! with it. `BLESS=1 cargo test -p kvwarden reference` writes `src/config/reference.md` anew.
//!
//! **A command.** Add `src/cli/NAME.rs` with its arguments and `run`, and in `src/cli/mod.rs` the module, a
//! row in `Command` and one in `Cli::run`. Then README's list; the golden test writes `golden/help.txt` anew
//! as it does the metrics.
//!
//! **A message.** Add a struct to `actors/src/protocol.rs`, with a comment that begins with who says it to
//! whom, and a handler that does not wait.

#![expect(
    unreachable_pub,
    reason = "the modules are private so that rustc finds what nobody uses; within the binary `pub` says enough"
)]

pub mod cli;
mod config;
mod http;
mod install;
mod journal;
mod lab;
mod layout;
mod metrics;
pub mod panic;
mod serve;
mod shim;
mod sim;
mod terminal;
mod weights;
