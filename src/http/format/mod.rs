//! How answers are written: server-sent events, and chunks put together to one answer.

pub mod assemble;
pub mod sse;
