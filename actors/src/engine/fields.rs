//! Which fields of a request a client may set: what an answer is made from and what it shall look like.
//!
//! A list of what is let through, since engines gain fields with every release: some steer their scheduler,
//! slots and caches, and would let one tenant pass the others, read another's cached prefix, end its
//! requests, or go unpaid. What is not on the list is dropped, as engines do with what they do not know.

/// The fields that reach one engine.
#[derive(Clone, Copy, Debug)]
pub enum Fields {
    /// OpenAI's and these.
    Known(&'static [&'static str]),
    /// All but those by which some engine is steered: which one this is nobody knows.
    Unknown,
}

/// OpenAI's, of chats, completions and embeddings; of `/tokenize` there is none that is not here.
const OPENAI: &[&str] = &[
    "audio",
    "best_of",
    "dimensions",
    "echo",
    "encoding_format",
    "frequency_penalty",
    "function_call",
    "functions",
    "input",
    "logit_bias",
    "logprobs",
    "max_completion_tokens",
    "max_tokens",
    "messages",
    "metadata",
    "modalities",
    "model",
    "n",
    "parallel_tool_calls",
    "prediction",
    "presence_penalty",
    "prompt",
    "prompt_cache_key",
    "prompt_cache_retention",
    "reasoning_effort",
    "response_format",
    "safety_identifier",
    "seed",
    "stop",
    "store",
    "stream",
    "stream_options",
    "suffix",
    "temperature",
    "tool_choice",
    "tools",
    "top_logprobs",
    "top_p",
    "user",
    "verbosity",
    "web_search_options",
];

/// By which one of the engines is steered. SGLang aborts by prefix of `rid`, and runs what
/// `custom_logit_processor` holds; `stream_interval` hides tokens from whoever counts them.
const STEERING: &[&str] = &[
    "bootstrap_host",
    "bootstrap_port",
    "bootstrap_room",
    "cache_prompt",
    "custom_labels",
    "custom_logit_processor",
    "custom_params",
    "data_parallel_rank",
    "disagg_prefill_dp_rank",
    "ec_transfer_params",
    "extra_key",
    "id_slot",
    "kv_transfer_params",
    "lora",
    "lora_path",
    "n_cache_reuse",
    "ngram_corpus_id",
    "request_id",
    "return_hidden_states",
    "return_progress",
    "rid",
    "routed_dp_rank",
    "session_id",
    "session_params",
    "sse_ping_interval",
    "stream_interval",
    "vllm_xargs",
];

impl Fields {
    /// A client may set this field.
    #[must_use]
    pub fn let_through(&self, name: &str) -> bool {
        let is_in = |list: &[&str]| list.binary_search(&name).is_ok();
        match self {
            Self::Known(own) => is_in(OPENAI) || is_in(own),
            Self::Unknown => !is_in(STEERING),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::EngineKind;

    #[test]
    fn lists_are_in_order_and_let_nothing_through_that_steers() {
        let is_in_order = |list: &[&str]| list.is_sorted_by(|one, other| one < other);
        assert!(is_in_order(OPENAI) && is_in_order(STEERING));
        for kind in EngineKind::ALL {
            let fields = kind.dialect().fields;
            if let Fields::Known(own) = fields {
                assert!(is_in_order(own), "{kind:?}");
                let twice = own.iter().find(|name| OPENAI.contains(name));
                assert_eq!(twice, None, "{kind:?}");
            }
            let steers = STEERING.iter().find(|name| fields.let_through(name));
            assert_eq!(steers, None, "{kind:?}");
            let lost = OPENAI.iter().find(|name| !fields.let_through(name));
            assert_eq!(lost, None, "{kind:?}");
        }
    }

    #[test]
    fn each_engine_gets_its_own_sampling_and_not_the_others() {
        let known = |kind: EngineKind, name| kind.dialect().fields.let_through(name);
        use EngineKind::{Attach, Command, LlamaCpp, Sglang, SglangCpu, Sim, Vllm, VllmCpu};
        for (name, engines) in [
            ("top_k", EngineKind::ALL.as_slice()),
            ("structured_outputs", &[Vllm, VllmCpu, Sim]),
            ("ebnf", &[Sglang, SglangCpu]),
            ("mirostat", &[LlamaCpp]),
            ("n_predict", &[LlamaCpp]),
            ("invented", &[]),
            ("chat_parser", &[]),
        ] {
            for kind in EngineKind::ALL {
                let wanted = engines.contains(&kind) || matches!(kind, Attach | Command);
                assert_eq!(known(kind, name), wanted, "{kind:?} {name}");
            }
        }
    }
}
