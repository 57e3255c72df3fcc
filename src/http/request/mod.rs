//! What is read off a request: who asks, the body, the fields we set, what the client says of itself.

pub mod body;
pub mod envelope;
pub mod identity;
pub mod images;
pub mod terms;
