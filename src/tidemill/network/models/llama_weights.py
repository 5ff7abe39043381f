"""Weights of the Llama family: where each checkpoint tensor comes from, and what is refused.

In: nothing but names. Out: one weight map for Hugging Face's names, one for GGUF's, and the check
of a model's config. `{i}` is the layer index. Note that the checkpoint's names are crossed: `fc`
carries the activated branch, which Hugging Face calls gate_proj, and `gate` carries up_proj.
Source: TensorRT-LLM model_weights_loader.py; llama.cpp gguf-py tensor_mapping.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tidemill.checkpoint.config import CheckpointConfig
from tidemill.checkpoint.weight_map import RowOrder, WeightMap, WeightRule

_T = "transformer.layers.{i}."
_H = "model.layers.{i}."
_G = "blk.{i}."

# llama.cpp interleaves the two rotary halves of every query and key head.
_QKV_ORDERS = (RowOrder.PAIRED_Q, RowOrder.PAIRED_K, RowOrder.PLAIN)


def _qkv(prefix: str, names: tuple[str, str, str], kind: str) -> tuple[str, ...]:
    return tuple(f"{prefix}{name}.{kind}" for name in names)


_HF_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_GGUF_QKV = ("attn_q", "attn_k", "attn_v")

HF_MAP = WeightMap(
    rules=(
        WeightRule("transformer.vocab_embedding.weight", ("model.embed_tokens.weight",)),
        WeightRule(_T + "input_layernorm.weight", (_H + "input_layernorm.weight",)),
        WeightRule(_T + "attention.qkv.weight", _qkv(_H, _HF_QKV, "weight")),
        WeightRule(_T + "attention.qkv.bias", _qkv(_H, _HF_QKV, "bias")),
        WeightRule(_T + "attention.dense.weight", (_H + "self_attn.o_proj.weight",)),
        WeightRule(_T + "attention.dense.bias", (_H + "self_attn.o_proj.bias",)),
        WeightRule(_T + "post_layernorm.weight", (_H + "post_attention_layernorm.weight",)),
        WeightRule(_T + "mlp.fc.weight", (_H + "mlp.gate_proj.weight",)),
        WeightRule(_T + "mlp.fc.bias", (_H + "mlp.gate_proj.bias",)),
        WeightRule(_T + "mlp.gate.weight", (_H + "mlp.up_proj.weight",)),
        WeightRule(_T + "mlp.gate.bias", (_H + "mlp.up_proj.bias",)),
        WeightRule(_T + "mlp.proj.weight", (_H + "mlp.down_proj.weight",)),
        WeightRule(_T + "mlp.proj.bias", (_H + "mlp.down_proj.bias",)),
        WeightRule("transformer.ln_f.weight", ("model.norm.weight",)),
        WeightRule("lm_head.weight", ("lm_head.weight",)),
    ),
    ignored=("*.rotary_emb.inv_freq",),
)

GGUF_MAP = WeightMap(
    rules=(
        WeightRule("transformer.vocab_embedding.weight", ("token_embd.weight",)),
        WeightRule(_T + "input_layernorm.weight", (_G + "attn_norm.weight",)),
        WeightRule(_T + "attention.qkv.weight", _qkv(_G, _GGUF_QKV, "weight"), _QKV_ORDERS),
        WeightRule(_T + "attention.qkv.bias", _qkv(_G, _GGUF_QKV, "bias"), _QKV_ORDERS),
        WeightRule(_T + "attention.dense.weight", (_G + "attn_output.weight",)),
        WeightRule(_T + "attention.dense.bias", (_G + "attn_output.bias",)),
        WeightRule(_T + "post_layernorm.weight", (_G + "ffn_norm.weight",)),
        WeightRule(_T + "mlp.fc.weight", (_G + "ffn_gate.weight",)),
        WeightRule(_T + "mlp.fc.bias", (_G + "ffn_gate.bias",)),
        WeightRule(_T + "mlp.gate.weight", (_G + "ffn_up.weight",)),
        WeightRule(_T + "mlp.gate.bias", (_G + "ffn_up.bias",)),
        WeightRule(_T + "mlp.proj.weight", (_G + "ffn_down.weight",)),
        WeightRule(_T + "mlp.proj.bias", (_G + "ffn_down.bias",)),
        WeightRule("transformer.ln_f.weight", ("output_norm.weight",)),
        WeightRule("lm_head.weight", ("output.weight",)),
    ),
    # The rotary factors are read into the config.
    ignored=("rope_freqs.weight", "*.attn_rot_embd"),
)


def unsupported_settings(config: CheckpointConfig, hf_values: Mapping[str, Any]) -> list[str]:
    """List what a model of this family asks for and we cannot do; empty is fine.

    `hf_values` is the Hugging Face config, empty for other sources.
    """
    faults = []
    if config.hidden_act not in ("silu", "swiglu"):
        faults.append(f"hidden_act {config.hidden_act} (only silu)")
    if config.position_embedding_type != "rope_gpt_neox":
        faults.append(f"position_embedding_type {config.position_embedding_type}")
    if config.rotary_embedding_dim == 0:
        faults.append("rotary_embedding_dim 0")
    window = hf_values.get("sliding_window")
    if config.architecture == "LlamaForCausalLM" and any(config.attention_windows) and window:
        faults.append(
            f"sliding_window {window} (transformers' Llama ignores it, others do not: remove it, or"
            " name the architecture MistralForCausalLM)"
        )
    if config.qk_layernorm:
        faults.append("qk_layernorm")
    return faults
