"""The sample model in transformers, float32, with the tensors of a checkpoint of ours.

In: a checkpoint's safetensors file and config.json, read here with other people's readers. Out:
logits of whole sequences. The names are written out by hand; nothing of Tidemill is used.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

Array = npt.NDArray[Any]

OURS_TO_THEIRS = {
    "input_layernorm": "input_layernorm",
    "post_layernorm": "post_attention_layernorm",
    "attention.dense": "self_attn.o_proj",
    "mlp.fc": "mlp.gate_proj",
    "mlp.gate": "mlp.up_proj",
    "mlp.proj": "mlp.down_proj",
}


class TransformersJudge:
    """Answers what transformers would, in float32 arithmetic."""

    def __init__(self, checkpoint_dir: Path, rounded_to: torch.dtype = torch.float32) -> None:
        config = json.loads((checkpoint_dir / "config.json").read_text())
        stored = load_file(checkpoint_dir / "rank0.safetensors")
        weights = {name: tensor.to(rounded_to).float() for name, tensor in _renamed(stored, config)}
        with torch.device("meta"):
            model = LlamaForCausalLM(_llama_config(config))
        model = model.to_empty(device="cpu")
        model.tie_weights()
        missing, unexpected = model.load_state_dict(weights, strict=False)
        assert missing in ([], ["lm_head.weight"]) and not unexpected
        model.tie_weights()
        # Rotary frequencies are a buffer that no checkpoint holds: made again off the meta device.
        rotary = type(model.model.rotary_emb)(config=model.config)
        model.model.rotary_emb = rotary
        self._model = model.eval()

    def logits(self, tokens: Sequence[int], last: int) -> Array:
        """Logits at the last positions of one sequence; Shapes: (last, vocabulary)."""
        with torch.no_grad():
            out = self._model(torch.tensor([list(tokens)]), logits_to_keep=last)
        return np.asarray(out.logits[0].numpy())


def _renamed(stored: dict[str, Any], config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    yield "model.embed_tokens.weight", stored["transformer.vocab_embedding.weight"]
    yield "model.norm.weight", stored["transformer.ln_f.weight"]
    head_rows = config["head_size"]
    sizes = [head_rows * config["num_attention_heads"]]
    sizes += [head_rows * config["num_key_value_heads"]] * 2
    for layer in range(config["num_hidden_layers"]):
        ours, theirs = f"transformer.layers.{layer}.", f"model.layers.{layer}."
        for our_name, their_name in OURS_TO_THEIRS.items():
            yield f"{theirs}{their_name}.weight", stored[f"{ours}{our_name}.weight"]
        parts = stored[f"{ours}attention.qkv.weight"].split(sizes)
        for letter, part in zip("qkv", parts, strict=True):
            yield f"{theirs}self_attn.{letter}_proj.weight", part


def _llama_config(config: dict[str, Any]) -> Any:
    return LlamaConfig(
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        num_hidden_layers=config["num_hidden_layers"],
        num_attention_heads=config["num_attention_heads"],
        num_key_value_heads=config["num_key_value_heads"],
        head_dim=config["head_size"],
        max_position_embeddings=config["max_position_embeddings"],
        rms_norm_eps=config["norm_epsilon"],
        tie_word_embeddings=config["tie_word_embeddings"],
        rope_parameters={"rope_type": "default", "rope_theta": config["rotary_base"]},
    )
