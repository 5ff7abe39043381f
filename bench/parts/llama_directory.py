"""Hugging Face directories of Llama models for benchmarks: the sample's weights, or random ones.

    python -m bench.parts.llama_directory {smollm2,llama-1.1b} OUTPUT_DIR

`smollm2` is the sample model dequantised to bfloat16. `llama-1.1b` has the shape of TinyLlama with
random weights and the sample's vocabulary and tokenizer: 1.17 G parameters of bfloat16, of no use
but for timing. Weights are made and written one tensor at a time.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.parts.command_line import parser_of
from bench.parts.safetensors_stream import TensorSpec, write_safetensors
from tidemill.api.sample import fetch_sample
from tidemill.api.tokenizer_files import files_from_gguf
from tidemill.base.dtypes import DType
from tidemill.checkpoint.dtype_conversion import convert_floats
from tidemill.checkpoint.gguf_source import GgufSource
from tidemill.checkpoint.weight_map import unpair_rotary_rows

Make = Callable[[str], npt.NDArray[Any]]

LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
SMOLLM2 = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "rope_theta": 100000.0,
    "tie_word_embeddings": True,
}
LLAMA_1_1B = {
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "max_position_embeddings": 4096,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
NAME_TO_SHAPE = {"smollm2": SMOLLM2, "llama-1.1b": LLAMA_1_1B}
VOCAB_SIZE = 49_152
WEIGHT_SCALE = 0.02


def write_llama_directory(model: str, directory: Path) -> None:
    """Write config.json, model.safetensors and the tokenizer's files; whole or not at all."""
    shape = NAME_TO_SHAPE[model]
    source = GgufSource(fetch_sample())
    staged = directory.with_name(directory.name + ".part")
    staged.mkdir(parents=True, exist_ok=True)
    for name, content in files_from_gguf(source.file.metadata).items():
        (staged / name).write_bytes(content)
    (staged / "config.json").write_text(json.dumps(hf_config(shape), indent=2) + "\n", "utf-8")
    specs = tensor_specs(shape)
    make = sample_weights(source, shape) if model == "smollm2" else random_weights(specs)
    write_safetensors(staged / "model.safetensors", specs, make)
    staged.rename(directory)


def hf_config(shape: dict[str, Any]) -> dict[str, Any]:
    """Return the config of a Llama with the sample's vocabulary."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "bfloat16",
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "vocab_size": VOCAB_SIZE,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "attention_bias": False,
        "mlp_bias": False,
        "head_dim": shape["hidden_size"] // shape["num_attention_heads"],
        **shape,
    }


def tensor_specs(shape: dict[str, Any]) -> dict[str, TensorSpec]:
    """Return names, types and shapes in file order."""
    hidden, inner = shape["hidden_size"], shape["intermediate_size"]
    kv = hidden // shape["num_attention_heads"] * shape["num_key_value_heads"]
    part_to_shape = {
        "input_layernorm": (hidden,),
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "post_attention_layernorm": (hidden,),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    specs: dict[str, TensorSpec] = {"model.embed_tokens.weight": ("BF16", (VOCAB_SIZE, hidden))}
    for layer in range(shape["num_hidden_layers"]):
        for part, sizes in part_to_shape.items():
            specs[f"model.layers.{layer}.{part}.weight"] = ("BF16", sizes)
    specs["model.norm.weight"] = ("BF16", (hidden,))
    if not shape["tie_word_embeddings"]:
        specs["lm_head.weight"] = ("BF16", (VOCAB_SIZE, hidden))
    return specs


def random_weights(specs: dict[str, TensorSpec]) -> Make:
    """Norms are one; the rest is normal, so that activations neither vanish nor overflow."""
    random = np.random.default_rng(20)

    def make(name: str) -> npt.NDArray[Any]:
        shape = specs[name][1]
        if len(shape) == 1:
            values = np.ones(shape, np.float32)
        else:
            values = random.standard_normal(shape, np.float32) * np.float32(WEIGHT_SCALE)
        return convert_floats(values, DType.F32, DType.BF16, name)

    return make


def sample_weights(source: GgufSource, shape: dict[str, Any]) -> Make:
    """Dequantise, and undo llama.cpp's order of the rotary rows."""

    def make(name: str) -> npt.NDArray[Any]:
        gguf_name = to_gguf_name(name)
        values = source.read(gguf_name)
        if "attn_q" in gguf_name:
            values = unpair_rotary_rows(values, shape["num_attention_heads"])
        elif "attn_k" in gguf_name:
            values = unpair_rotary_rows(values, shape["num_key_value_heads"])
        return convert_floats(values, source.dtype(gguf_name), DType.BF16, name)

    return make


def to_gguf_name(name: str) -> str:
    """Return llama.cpp's name of a tensor."""
    outer = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    if name in outer:
        return outer[name]
    layer, _, part = name.removeprefix("model.layers.").removesuffix(".weight").partition(".")
    return f"blk.{layer}.{LAYER_NAMES[part]}.weight"


def main() -> None:
    """Write the directory that was asked for."""
    parser = parser_of(__doc__)
    parser.add_argument("model", choices=NAME_TO_SHAPE)
    parser.add_argument("output_dir", type=Path)
    options = parser.parse_args()
    write_llama_directory(options.model, options.output_dir)


if __name__ == "__main__":
    main()
