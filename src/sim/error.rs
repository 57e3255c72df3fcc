//! Errors in vLLM's shape (`vllm/entrypoints/serve/exception_handler`).

use actix_web::{HttpResponse, ResponseError, http::StatusCode};
use serde_json::json;

/// What a client did wrong.
#[derive(Debug, thiserror::Error)]
pub(super) enum ApiError {
    /// The body is not what the endpoint takes: pydantic's kind of error.
    #[error("1 validation error:\n  {message}")]
    Body { message: String },
    /// The body is well formed and asks for something impossible.
    #[error("{message}")]
    Value {
        message: String,
        param: Option<&'static str>,
    },
    #[error("The model `{model}` does not exist.")]
    UnknownModel { model: String },
    #[error("Not Found")]
    NoSuchRoute,
    #[error("Unauthorized")]
    Unauthorized,
    /// The engine ended while the request waited for it.
    #[error("EngineCore encountered an issue. See stack trace (above) for the root cause.")]
    EngineGone,
}

// === impl ApiError ===

impl ApiError {
    pub(super) fn value(param: &'static str, message: impl Into<String>) -> Self {
        Self::Value {
            message: message.into(),
            param: Some(param),
        }
    }
}

impl ResponseError for ApiError {
    fn status_code(&self) -> StatusCode {
        match self {
            Self::Body { .. } | Self::Value { .. } => StatusCode::BAD_REQUEST,
            Self::UnknownModel { .. } | Self::NoSuchRoute => StatusCode::NOT_FOUND,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::EngineGone => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    fn error_response(&self) -> HttpResponse {
        let (kind, param) = match self {
            Self::Body { .. } => ("Bad Request", None),
            Self::Value { param, .. } => ("BadRequestError", *param),
            Self::UnknownModel { .. } => ("NotFoundError", Some("model")),
            Self::NoSuchRoute => ("Not Found", None),
            Self::EngineGone => ("InternalServerError", None),
            // vLLM's authentication layer answers before the error handlers and more tersely.
            Self::Unauthorized => {
                return HttpResponse::Unauthorized().json(json!({"error": "Unauthorized"}));
            }
        };
        HttpResponse::build(self.status_code()).json(json!({
            "error": {
                "message": self.to_string(),
                "type": kind,
                "param": param,
                "code": self.status_code().as_u16(),
            }
        }))
    }
}
