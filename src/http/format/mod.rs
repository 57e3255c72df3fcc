//! How answers are written: cut into server-sent events, read, put together from chunks, and cut
//! into chunks.
//!
//! | file | does |
//! |---|---|
//! | [`sse`] | bytes to whole events, none changed |
//! | [`event`] | what an event or an answer says: token, end, error, usage; decided here alone |
//! | [`usage`] | usage taken out of a stream, for a client that did not ask for it |
//! | [`assemble`] | the chunks of a stream to the answer that the engine would have given without one |
//! | [`split`] | an answer to the chunks of a stream |
//! | `merge` | values in the making |
//! | `json` | the reader below all of them: JSON as slices of its text, no tree |

pub mod assemble;
pub mod event;
mod json;
mod merge;
pub mod split;
pub mod sse;
pub mod usage;

#[cfg(test)]
mod tests;
