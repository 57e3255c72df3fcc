//! What a token of context costs, from the description of the network that lies beside its weights.

use std::path::Path;

use serde::Deserialize;

/// Keys and values are kept in two bytes each unless somebody asks for less.
const ELEMENT: u64 = 2;

/// What of a network's shape decides the size of its KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    /// Over all layers and heads.
    pub(super) kv_bytes_per_token: u64,
    /// The longest context it was trained for, in tokens.
    pub(super) context: u64,
}

impl Shape {
    /// `kv_heads` over all layers.
    pub(super) fn new(kv_heads: u64, key: u64, value: u64, context: u64) -> Self {
        Self {
            kv_bytes_per_token: kv_heads.saturating_mul(key.saturating_add(value)) * ELEMENT,
            context,
        }
    }
}

/// `config.json` of a Hugging Face model.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Network {
    /// Where the language part of a model that also sees is described.
    text_config: Option<Box<Network>>,
    num_hidden_layers: u64,
    num_attention_heads: u64,
    num_key_value_heads: Option<u64>,
    head_dim: Option<u64>,
    hidden_size: u64,
    max_position_embeddings: u64,
    /// Of models that keep one compressed vector per token and layer (DeepSeek's MLA).
    kv_lora_rank: Option<u64>,
    qk_rope_head_dim: u64,
}

/// None where the file is missing or describes something else.
pub(super) fn read(config: &Path) -> Option<Shape> {
    let text = std::fs::read_to_string(config).ok()?;
    let network: Network = serde_json::from_str(&text).ok()?;
    let network = match network.text_config {
        Some(text) => *text,
        None => network,
    };
    let (layers, heads) = (network.num_hidden_layers, network.num_attention_heads);
    if let Some(rank) = network.kv_lora_rank {
        let rope = network.qk_rope_head_dim;
        return Some(Shape::new(
            layers,
            rank,
            rope,
            network.max_position_embeddings,
        ));
    }
    let head_dim = match network.head_dim {
        Some(dim) => dim,
        None => network.hidden_size.checked_div(heads)?,
    };
    let kv_heads = layers.saturating_mul(network.num_key_value_heads.unwrap_or(heads));
    Some(Shape::new(
        kv_heads,
        head_dim,
        head_dim,
        network.max_position_embeddings,
    ))
}
