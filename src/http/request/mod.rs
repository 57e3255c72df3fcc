//! What is read off a request: who asks, the body, the fields we set, what the client says of itself.

pub(super) mod body;
pub(super) mod envelope;
pub(super) mod hints;
pub(super) mod identity;
mod members;
mod names;
pub(super) mod origin;
mod reading;
mod shape;
mod spelling;

use actix_web::HttpRequest;

use super::X_REQUEST_ID;

/// The id that [`identify`](super::identify) gave to a request.
pub(super) fn request_id(request: &HttpRequest) -> &str {
    request
        .headers()
        .get(&X_REQUEST_ID)
        .and_then(|id| id.to_str().ok())
        .unwrap_or_default()
}
