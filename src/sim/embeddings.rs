//! `/v1/embeddings`: unit vectors that depend on the text alone, and are close for close texts.

use actix_web::{HttpRequest, HttpResponse, web};
use kvwarden_policy::simulation::engine::Prompt;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    app::{self, App},
    error::ApiError,
    handle::Choice,
    request::{self, Input},
    text::mix,
};

/// Length of a vector unless the request says otherwise.
const DIMENSIONS: usize = 256;
/// No request may ask for longer ones; the longest in common use are shorter.
const MAX_DIMENSIONS: usize = 8192;

#[derive(Deserialize)]
struct Embed {
    model: Option<String>,
    input: Input,
    #[serde(default)]
    encoding_format: Encoding,
    dimensions: Option<usize>,
    #[serde(default)]
    priority: i32,
    cache_salt: Option<String>,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Encoding {
    #[default]
    Float,
    /// Little-endian floats, what OpenAI's own client asks for.
    Base64,
}

pub(super) async fn embed(
    app: web::Data<App>,
    request: HttpRequest,
    body: web::Bytes,
) -> Result<HttpResponse, ApiError> {
    let body: Embed = request::parse(&body)?;
    app.check_model(body.model.as_deref())?;
    let dimensions = body.dimensions.unwrap_or(DIMENSIONS);
    if !(1..=MAX_DIMENSIONS).contains(&dimensions) {
        let message = format!("dimensions must be between 1 and {MAX_DIMENSIONS}.");
        return Err(ApiError::value("dimensions", message));
    }
    let inputs = body.input.into_ids();
    request::check_sequences(inputs.len())?;
    let mut choices = Vec::with_capacity(inputs.len());
    let mut prompt_tokens: u32 = 0;
    for ids in &inputs {
        let prompt = Prompt::from_ids(body.cache_salt.as_deref(), ids);
        let tokens = prompt.tokens();
        if !(1..app.max_model_len).contains(&tokens) {
            let message = format!(
                "This model's maximum context length is {} tokens. However, you requested \
                 {tokens} tokens in the input for embedding generation.",
                app.max_model_len,
            );
            return Err(ApiError::value("input", message));
        }
        prompt_tokens += tokens;
        // Prefill only: an embedding generates nothing.
        choices.push(Choice {
            prompt,
            max_tokens: 0,
            limit: 0,
        });
    }
    let number = app.number();
    let mut in_flight = app.submit(number, body.priority, choices).await;
    in_flight.end().await?;
    let data: Vec<Value> = inputs
        .iter()
        .enumerate()
        .map(|(index, ids)| {
            let vector = vector(ids, dimensions);
            let embedding = match body.encoding_format {
                Encoding::Float => json!(vector),
                Encoding::Base64 => json!(base64(&vector)),
            };
            json!({"object": "embedding", "index": index, "embedding": embedding})
        })
        .collect();
    Ok(HttpResponse::Ok().json(json!({
        "id": app.response_id("embd", &request, number),
        "object": "list",
        "created": app::unix_now(),
        "model": app.model(),
        "data": data,
        "usage": {"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens, "completion_tokens": 0},
    })))
}

/// The sum of a random direction per token, scaled to length 1: a bag of words.
fn vector(ids: &[u32], dimensions: usize) -> Vec<f32> {
    let mut sum = vec![0.0_f32; dimensions];
    for id in ids {
        let mut state = u64::from(*id);
        for value in &mut sum {
            state = mix(state);
            // 16 bits are exact in f32, and evenly spread around 0.
            let bits = u16::try_from(state >> 48).unwrap_or(0);
            *value += f32::from(bits) - 32_767.5;
        }
    }
    let norm = sum.iter().map(|value| value * value).sum::<f32>().sqrt();
    // Directions that cancel out exactly leave nothing to scale.
    if norm == 0.0 {
        sum[0] = 1.0;
        return sum;
    }
    for value in &mut sum {
        *value /= norm;
    }
    sum
}

fn base64(vector: &[f32]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bytes: Vec<u8> = vector
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let mut padded = [0; 4];
        padded[1..=group.len()].copy_from_slice(group);
        let bits = u32::from_be_bytes(padded);
        for place in 0..4 {
            if place > group.len() {
                text.push('=');
            } else {
                let sextet = (bits >> (18 - 6 * place)) & 63;
                text.push(char::from(ALPHABET[sextet as usize]));
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::tokenizer::encode;

    fn similarity(left: &str, right: &str) -> f32 {
        let left = vector(&encode(left), DIMENSIONS);
        let right = vector(&encode(right), DIMENSIONS);
        left.iter().zip(&right).map(|(l, r)| l * r).sum()
    }

    #[test]
    fn vectors_have_length_one_and_close_texts_are_close() {
        let text = "the old fox ran by the sea";
        assert!((similarity(text, text) - 1.0).abs() < 1e-4);
        let close = similarity(text, "the old dog ran by the sea");
        let far = similarity(text, "seven new engines hum loudly");
        assert!(close > 0.6 && far < 0.4, "{close} {far}");
    }

    #[test]
    fn base64_pads_to_whole_groups() {
        assert_eq!(base64(&[]), "");
        // 00 00 80 3f
        assert_eq!(base64(&[1.0]), "AACAPw==");
        assert_eq!(base64(&[1.0, 1.0]), "AACAPwAAgD8=");
        assert_eq!(base64(&[1.0, 1.0, 1.0]), "AACAPwAAgD8AAIA/");
    }
}
