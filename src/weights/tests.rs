use std::{collections::BTreeMap, fs, path::PathBuf};

use kvwarden_policy::{lifecycle::SleepLevels, scheduling::Capacity};
use serde_json::json;

use super::*;

fn flags() -> EngineFlags {
    EngineFlags {
        capacity: Capacity::of_engine(4, 2048, None),
        max_model_len: None,
        dtype: None,
        tensor_parallel: 1,
        gpu_memory_utilization: None,
        threads: None,
        kv_cache_bytes: None,
        kv_cpu_bytes: None,
        kv_ssd_bytes: None,
        levels: SleepLevels::default(),
        own: None,
        extra_args: Vec::new(),
        env: BTreeMap::new(),
    }
}

/// A file with `tensors` bytes of tensors.
fn shard(dir: &Path, name: &str, tensors: usize) {
    let header = br#"{"a":{}}"#;
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header);
    file.resize(file.len() + tensors, 0);
    fs::write(dir.join(name), file).unwrap();
}

/// A directory with 100 bytes of weights and Llama 3.1 8B's shape.
fn model() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    shard(dir.path(), "a-1.safetensors", 60);
    shard(dir.path(), "a-2.safetensors", 40);
    let config = json!({
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "hidden_size": 4096, "max_position_embeddings": 131_072,
    });
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    dir
}

fn of(kind: EngineKind, flags: &EngineFlags, path: &Path) -> Footprint {
    footprint(kind, flags, path.to_str().unwrap(), None).unwrap()
}

#[test]
fn index_says_which_files_are_the_model() {
    let dir = model();
    assert_eq!(safetensors::bytes(dir.path()).unwrap(), 100);
    shard(dir.path(), "consolidated.safetensors", 100);
    let index = json!({"weight_map": {"x": "a-1.safetensors", "y": "a-2.safetensors"}});
    fs::write(
        dir.path().join("model.safetensors.index.json"),
        index.to_string(),
    )
    .unwrap();
    assert_eq!(safetensors::bytes(dir.path()).unwrap(), 100);
    fs::remove_file(dir.path().join("a-2.safetensors")).unwrap();
    assert_eq!(
        footprint(
            EngineKind::Vllm,
            &flags(),
            dir.path().to_str().unwrap(),
            None
        ),
        None
    );
}

#[test]
fn tensor_parallel_divides_weights_and_a_fixed_pool_is_per_gpu() {
    let dir = model();
    let flags = EngineFlags {
        tensor_parallel: 2,
        kv_cache_bytes: Some(1000),
        ..flags()
    };
    let footprint = of(EngineKind::Vllm, &flags, dir.path());
    assert_eq!(
        (footprint.weights, footprint.kv, footprint.share),
        (50, 1000, None)
    );
}

#[test]
fn engine_without_a_fixed_pool_fills_its_share() {
    let flags = EngineFlags {
        gpu_memory_utilization: Some(0.5),
        ..flags()
    };
    assert_eq!(
        of(EngineKind::Sglang, &flags, model().path()).share,
        Some(0.5)
    );
}

#[test]
fn token_of_llama_8b_takes_128_kib() {
    let shape = shape::read(&model().path().join("config.json")).unwrap();
    assert_eq!(shape.kv_bytes_per_token, 128 << 10);
}

#[test]
fn compressed_kv_is_counted_as_such() {
    let dir = tempfile::tempdir().unwrap();
    let config = json!({"text_config": {
        "num_hidden_layers": 61, "num_attention_heads": 128, "kv_lora_rank": 512,
        "qk_rope_head_dim": 64,
    }});
    let path = dir.path().join("config.json");
    fs::write(&path, config.to_string()).unwrap();
    let shape = shape::read(&path).unwrap();
    assert_eq!(shape.kv_bytes_per_token, 61 * 576 * 2);
}

/// A header with the given values, as GGUF writes them.
fn gguf(values: &[(&str, u32, Vec<u8>)]) -> PathBuf {
    let text = |text: &str| [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat();
    let mut file = [&b"GGUF"[..], &3_u32.to_le_bytes(), &0_u64.to_le_bytes()].concat();
    file.extend((values.len() as u64 + 1).to_le_bytes());
    file.extend(
        [
            text("general.architecture"),
            8_u32.to_le_bytes().into(),
            text("llama"),
        ]
        .concat(),
    );
    for (name, kind, value) in values {
        file.extend([text(name), kind.to_le_bytes().into(), value.clone()].concat());
    }
    let dir = tempfile::tempdir().unwrap().keep();
    let path = dir.join("m-00001-of-00002.gguf");
    fs::write(&path, file).unwrap();
    fs::write(dir.join("m-00002-of-00002.gguf"), [0; 50]).unwrap();
    path
}

#[test]
fn gguf_tells_its_shape_past_values_nobody_asked_for() {
    let u32s = |numbers: &[u32]| {
        numbers
            .iter()
            .flat_map(|n| n.to_le_bytes())
            .collect::<Vec<_>>()
    };
    let list = |kind: u32, length: u64, items: Vec<u8>| {
        [&kind.to_le_bytes()[..], &length.to_le_bytes(), &items].concat()
    };
    let words = [&1_u64.to_le_bytes()[..], b"a", &2_u64.to_le_bytes(), b"bc"].concat();
    let path = gguf(&[
        ("tokenizer.ggml.tokens", 9, list(8, 2, words)),
        ("tokenizer.ggml.scores", 9, list(6, 2, vec![0; 8])),
        ("llama.block_count", 4, u32s(&[30])),
        ("llama.attention.head_count", 4, u32s(&[9])),
        (
            "llama.attention.head_count_kv",
            9,
            list(4, 30, u32s(&[3; 30])),
        ),
        ("llama.embedding_length", 4, u32s(&[576])),
        ("llama.context_length", 4, u32s(&[8192])),
        ("llama.rope.freq_base", 6, vec![0; 4]),
        ("general.by_hand", 7, vec![1]),
    ]);
    let weights = gguf::read(&path).unwrap();
    assert_eq!(weights.bytes, fs::metadata(&path).unwrap().len() + 50);
    let shape = weights.shape.unwrap();
    // SmolLM2-135M: measured 23 KB per token.
    assert_eq!((shape.kv_bytes_per_token, shape.context), (23_040, 8192));
    let flags = EngineFlags {
        max_model_len: Some(100),
        ..flags()
    };
    let slots = flags.capacity.engine_sequences();
    assert_eq!(
        of(EngineKind::LlamaCpp, &flags, &path).kv,
        100 * slots * 23_040
    );
    fs::remove_dir_all(path.parent().unwrap()).unwrap();
}

#[test]
fn broken_files_tell_nothing_and_harm_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let huge = [&b"GGUF"[..], &3_u32.to_le_bytes(), &[0xFF; 16], &[0xFF; 64]].concat();
    for (name, bytes) in [
        ("empty.gguf", &b""[..]),
        ("other.gguf", b"PK\x03\x04aaaaaaaaaaaa"),
        ("huge.gguf", &huge),
    ] {
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        assert!(gguf::read(&path).is_err(), "{name}");
    }
    fs::write(dir.path().join("model.safetensors"), [0xFF; 20]).unwrap();
    assert!(safetensors::bytes(dir.path()).is_err());
}

#[test]
fn author_knows_better() {
    let path = model();
    let source = path.path().to_str().unwrap();
    let told = footprint(EngineKind::Vllm, &flags(), source, Some(150)).unwrap();
    assert_eq!((told.weights, told.kv, told.share), (100, 50, None));
    let unknown = footprint(EngineKind::Vllm, &flags(), "org/model", Some(150)).unwrap();
    assert_eq!(unknown.on(1 << 40), 150);
    assert_eq!(
        footprint(EngineKind::Vllm, &flags(), "org/model", None),
        None
    );
}
