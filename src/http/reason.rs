//! Why a request was dropped, in one word: for metrics and for headers.

/// Every way a request can end without an engine's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// Malformed.
    InvalidRequest,
    /// The body is larger than the limit.
    BodyTooLarge,
    /// The tenant's bodies that are held.
    TenantBodiesFull,
    /// The body did not arrive in time.
    BodyTimeout,
    /// Not JSON by its own header.
    NotJson,
    /// No key, or an unknown one.
    InvalidApiKey,
    /// This key may not see that.
    Forbidden,
    /// The configuration that was to be read again.
    ConfigRefused,
    /// No such route.
    UnknownRoute,
    /// The route is there for other methods.
    WrongMethod,
    /// The header lines are larger than the limit.
    HeadersTooLarge,
    /// No such model.
    ModelNotFound,
    /// The tenant's requests per minute.
    RequestsPerMinute,
    /// The tenant's tokens per minute.
    TokensPerMinute,
    /// The tenant's tokens per day.
    TokensPerDay,
    /// One request is more than all of a budget.
    LargerThanBudget,
    /// The tenant's requests at once.
    MaxConcurrentRequests,
    /// The tenant's part of the queue.
    TenantQueueFull,
    /// The model's queue.
    QueueFull,
    /// Its turn did not come in time.
    QueueTimeout,
    /// Its turn did not come, or would not, before its client gives up.
    Deadline,
    /// The engine can't be brought to life.
    EngineBroken,
    /// The engine went away before it answered.
    EngineUnreachable,
    /// The engine answered with an error.
    EngineError,
    /// This node holds as many requests as it can.
    NodeFull,
    /// An actor of this node did not answer in time.
    ActorTimeout,
    /// This node is shutting down.
    ShuttingDown,
}

impl Reason {
    /// Its name, in `x-kvwarden-dropped-reason` and in metrics.
    #[must_use]
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::InvalidRequest => "invalid_request",
            Self::BodyTooLarge => "body_too_large",
            Self::TenantBodiesFull => "tenant_bodies_full",
            Self::BodyTimeout => "body_timeout",
            Self::NotJson => "not_json",
            Self::InvalidApiKey => "invalid_api_key",
            Self::Forbidden => "forbidden",
            Self::ConfigRefused => "config_refused",
            Self::UnknownRoute => "unknown_route",
            Self::WrongMethod => "wrong_method",
            Self::HeadersTooLarge => "headers_too_large",
            Self::ModelNotFound => "model_not_found",
            Self::RequestsPerMinute => "requests_per_minute",
            Self::TokensPerMinute => "tokens_per_minute",
            Self::TokensPerDay => "tokens_per_day",
            Self::LargerThanBudget => "larger_than_budget",
            Self::MaxConcurrentRequests => "max_concurrent_requests",
            Self::TenantQueueFull => "tenant_queue_full",
            Self::QueueFull => "queue_full",
            Self::QueueTimeout => "queue_timeout",
            Self::Deadline => "deadline",
            Self::EngineBroken => "engine_broken",
            Self::EngineUnreachable => "engine_unreachable",
            Self::EngineError => "engine_error",
            Self::NodeFull => "node_full",
            Self::ActorTimeout => "actor_timeout",
            Self::ShuttingDown => "shutting_down",
        }
    }

    /// What llm-d's router calls it in `x-llm-d-request-dropped-reason`, if it knows such a thing.
    #[must_use]
    pub(super) const fn llm_d(self) -> Option<&'static str> {
        match self {
            Self::TenantBodiesFull | Self::TenantQueueFull | Self::QueueFull | Self::NodeFull => {
                Some("rejected-saturated")
            }
            Self::QueueTimeout | Self::Deadline => Some("rejected-ttl-expired"),
            Self::ShuttingDown => Some("rejected-shutting-down"),
            Self::InvalidRequest
            | Self::BodyTooLarge
            | Self::BodyTimeout
            | Self::NotJson
            | Self::InvalidApiKey
            | Self::Forbidden
            | Self::ConfigRefused
            | Self::UnknownRoute
            | Self::WrongMethod
            | Self::HeadersTooLarge
            | Self::ModelNotFound
            | Self::RequestsPerMinute
            | Self::TokensPerMinute
            | Self::TokensPerDay
            | Self::LargerThanBudget
            | Self::MaxConcurrentRequests
            | Self::ActorTimeout
            | Self::EngineBroken
            | Self::EngineUnreachable
            | Self::EngineError => None,
        }
    }
}
