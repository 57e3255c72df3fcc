//! `/v1/chat/completions` and `/v1/completions`.

use actix_web::{HttpRequest, HttpResponse, web};
use kvwarden_policy::simulation::engine::Prompt;
use serde_json::{Value, json};

use super::{
    answer::{Answer, Dialect},
    app::{self, App},
    error::ApiError,
    handle::{Choice, End, InFlightRequest},
    request::{self, Generate, Input, Message, Sampling},
    stream,
    text::Story,
    tokenizer,
};

pub(super) async fn chat(
    app: web::Data<App>,
    request: HttpRequest,
    body: web::Bytes,
) -> Result<HttpResponse, ApiError> {
    let body: Generate = request::parse(&body)?;
    let Some(messages) = body.messages.as_deref().filter(|list| !list.is_empty()) else {
        let message = "body.messages: Field required and not empty".to_owned();
        return Err(ApiError::Body { message });
    };
    let prompts = vec![chat_ids(messages)];
    generate(&app, &request, &body, Dialect::Chat, prompts).await
}

pub(super) async fn complete(
    app: web::Data<App>,
    request: HttpRequest,
    body: web::Bytes,
) -> Result<HttpResponse, ApiError> {
    let mut body: Generate = request::parse(&body)?;
    // A completion has no messages; its default for max_tokens depends on that.
    body.messages = None;
    let Some(input) = body.prompt.take() else {
        let message = "body.prompt: Field required".to_owned();
        return Err(ApiError::Body { message });
    };
    let prompts = input.into_ids();
    generate(&app, &request, &body, Dialect::Completion, prompts).await
}

async fn generate(
    app: &App,
    request: &HttpRequest,
    body: &Generate,
    dialect: Dialect,
    prompts: Vec<Vec<u32>>,
) -> Result<HttpResponse, ApiError> {
    app.check_model(body.model.as_deref())?;
    body.check(prompts.len())?;
    let number = app.number();
    let mut choices = Vec::new();
    let mut stories = Vec::new();
    let mut prompt_tokens = 0;
    for ids in &prompts {
        if ids.is_empty() {
            let message = "The decoder prompt cannot be empty";
            return Err(ApiError::value("prompt", message));
        }
        let prompt = Prompt::from_ids(body.salt(), ids);
        let max_tokens = body.max_tokens(prompt.tokens(), app.max_model_len)?;
        prompt_tokens += prompt.tokens();
        for choice in 0..body.choices() {
            let take = match body.sampling() {
                Sampling::Greedy => 0,
                Sampling::Seeded(seed) => seed.rotate_left(17).wrapping_add(u64::from(choice)),
                Sampling::Free => (number + 1) << 8 | u64::from(choice),
            };
            let story = Story::new(app.seed, ids, take);
            stories.push(story);
            choices.push(Choice {
                prompt: prompt.clone(),
                max_tokens,
                limit: body.limit(story.length()),
            });
        }
    }
    let kind = match dialect {
        Dialect::Chat => "chatcmpl",
        Dialect::Completion => "cmpl",
    };
    let answer = Answer {
        dialect,
        id: app.response_id(kind, request, number),
        model: app.model().to_owned(),
        created: app::unix_now(),
        stories,
        prompt_tokens,
        n: body.choices(),
    };
    let mut in_flight = app.submit(number, body.priority, choices).await;
    if body.stream == Some(true) {
        let (at_end, always) = body.usage_wanted();
        return Ok(stream::respond(answer, in_flight, at_end, always));
    }
    whole(&answer, &mut in_flight).await
}

async fn whole(answer: &Answer, in_flight: &mut InFlightRequest) -> Result<HttpResponse, ApiError> {
    let progress = in_flight.end().await?;
    let choices: Vec<Value> = progress
        .choices
        .iter()
        .enumerate()
        .map(|(index, choice)| {
            let text = answer.text(&progress, index, 0);
            let reason = choice.end.map(End::name);
            match answer.dialect {
                Dialect::Chat => json!({
                    "index": index,
                    "message": {"role": "assistant", "content": text, "tool_calls": []},
                    "logprobs": null,
                    "finish_reason": reason,
                    "stop_reason": null,
                }),
                Dialect::Completion => json!({
                    "index": index,
                    "text": text,
                    "logprobs": null,
                    "finish_reason": reason,
                    "stop_reason": null,
                }),
            }
        })
        .collect();
    Ok(HttpResponse::Ok().json(json!({
        "id": answer.id,
        "object": match answer.dialect {
            Dialect::Chat => "chat.completion",
            Dialect::Completion => "text_completion",
        },
        "created": answer.created,
        "model": answer.model,
        "choices": choices,
        "usage": answer.usage(&progress),
    })))
}

pub(super) fn chat_ids(messages: &[Message]) -> Vec<u32> {
    let texts: Vec<String> = messages.iter().map(Message::text).collect();
    let pairs = messages.iter().zip(&texts);
    tokenizer::encode_chat(pairs.map(|(message, text)| (message.role.as_str(), text.as_str())))
}

// === impl Input ===

impl Input {
    /// The token ids of each prompt.
    pub(super) fn into_ids(self) -> Vec<Vec<u32>> {
        match self {
            Self::Text(text) => vec![tokenizer::encode(&text)],
            Self::Texts(texts) => texts.iter().map(|text| tokenizer::encode(text)).collect(),
            Self::Ids(ids) => vec![ids],
            Self::IdLists(lists) => lists,
        }
    }
}
