//! `/tokenize` and `/detokenize`.

use actix_web::{HttpResponse, web};
use serde::Deserialize;
use serde_json::json;

use super::{
    app::App,
    completions::chat_ids,
    error::ApiError,
    request::{self, Message},
    tokenizer,
};

/// A text or a conversation.
#[derive(Deserialize)]
struct Tokenize {
    model: Option<String>,
    prompt: Option<String>,
    messages: Option<Vec<Message>>,
}

#[derive(Deserialize)]
struct Detokenize {
    model: Option<String>,
    tokens: Vec<u32>,
}

pub(super) async fn tokenize(
    app: web::Data<App>,
    body: web::Bytes,
) -> Result<HttpResponse, ApiError> {
    let body: Tokenize = request::parse(&body)?;
    app.check_model(body.model.as_deref())?;
    let tokens = match (&body.messages, &body.prompt) {
        (Some(messages), _) => chat_ids(messages),
        (None, Some(prompt)) => tokenizer::encode(prompt),
        (None, None) => {
            let message = "body.prompt: Field required".to_owned();
            return Err(ApiError::Body { message });
        }
    };
    Ok(HttpResponse::Ok().json(json!({
        "count": tokens.len(),
        "max_model_len": app.max_model_len,
        "tokens": tokens,
        "token_strs": null,
    })))
}

pub(super) async fn detokenize(
    app: web::Data<App>,
    body: web::Bytes,
) -> Result<HttpResponse, ApiError> {
    let body: Detokenize = request::parse(&body)?;
    app.check_model(body.model.as_deref())?;
    Ok(HttpResponse::Ok().json(json!({"prompt": tokenizer::decode(&body.tokens)})))
}
