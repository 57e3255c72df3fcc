"""A model of Llama-3.1-8B's shape: its config, a tokenizer made here and, if asked for, random weights.

usage: model.py DIR [--weights]

It runs in vLLM's environment. Without weights vLLM makes them up (`--load-format dummy`).
"""
import json
import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src/lab/bench"))
from make_tiny_llama import write_json, write_tokenizer

HIDDEN, INNER, LAYERS, HEADS, KV_HEADS, HEAD = 4096, 14336, 32, 32, 8, 128
VOCABULARY, CONTEXT = 128256, 131072

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": CONTEXT,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "attention_bias": False,
    "mlp_bias": False,
    "bos_token_id": 0,
    "eos_token_id": 2,
}


def shapes():
    """Files of weights, one for the ends of the model and one per layer."""
    ends = {"model.embed_tokens": (VOCABULARY, HIDDEN), "lm_head": (VOCABULARY, HIDDEN), "model.norm": (HIDDEN,)}
    yield ends
    for layer in range(LAYERS):
        parts = {
            "self_attn.q_proj": (HEADS * HEAD, HIDDEN),
            "self_attn.k_proj": (KV_HEADS * HEAD, HIDDEN),
            "self_attn.v_proj": (KV_HEADS * HEAD, HIDDEN),
            "self_attn.o_proj": (HIDDEN, HEADS * HEAD),
            "mlp.gate_proj": (INNER, HIDDEN),
            "mlp.up_proj": (INNER, HIDDEN),
            "mlp.down_proj": (HIDDEN, INNER),
            "input_layernorm": (HIDDEN,),
            "post_attention_layernorm": (HIDDEN,),
        }
        yield {f"model.layers.{layer}.{name}": shape for name, shape in parts.items()}


def write_weights(out):
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    index, total = {}, 0
    for number, part in enumerate(shapes()):
        file = f"model-{number:05}.safetensors"
        tensors = {}
        for name, shape in part.items():
            values = torch.randn(*shape, device=device) * 0.02 if len(shape) > 1 else torch.ones(*shape)
            tensors[f"{name}.weight"] = values.to(torch.bfloat16).cpu()
            total += tensors[f"{name}.weight"].nbytes
        save_file(tensors, out / file, metadata={"format": "pt"})
        index |= dict.fromkeys(tensors, file)
    # Last, so that a model without it is known to be unfinished.
    write_json(out, "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": index})


def main():
    out = Path(sys.argv[1])
    os.makedirs(out, exist_ok=True)
    write_tokenizer(out, vocabulary=4096, context=CONTEXT)
    write_json(out, "generation_config.json", {"bos_token_id": 0, "eos_token_id": 2})
    write_json(out, "config.json", CONFIG)
    if "--weights" in sys.argv:
        write_weights(out)
    print(json.dumps({"model": str(out)}))


if __name__ == "__main__":
    main()
