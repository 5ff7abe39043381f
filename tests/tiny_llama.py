"""Writes tiny random Llamas and Mistrals as Hugging Face directories, to test against transformers.

In: a shape. Out: config.json, model.safetensors (seeded weights), tokenizer.json of bytes with a
chat template, generation_config.json. transformers itself writes the files, so that they are what
users have. Knows nothing of Tidemill.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL_TOKENS = ("<s>", "</s>", "<unk>")


@dataclass(frozen=True)
class TinyLlama:
    """The shape of a tiny model; sizes are small, and odd where the architecture allows it.

    `rope_scaling` holds (key, value) pairs, so that the shape stays hashable. A `sliding_window`
    makes it a Mistral; with `layer_types` it is a Ministral. `weight_std` is of the matrices.
    """

    num_layers: int = 2
    hidden_size: int = 48
    num_heads: int = 6
    num_kv_heads: int = 2
    head_size: int = 8
    intermediate_size: int = 104
    vocab_size: int = 263
    max_position_embeddings: int = 512
    is_tied: bool = True
    has_attention_bias: bool = False
    has_mlp_bias: bool = False
    rope_theta: float = 10000.0
    rope_scaling: tuple[tuple[str, float | str], ...] = ()
    dtype: str = "float32"
    sliding_window: int | None = None
    layer_types: tuple[str, ...] = ()
    max_shard_size: str = "5GB"
    seed: int = 7
    weight_std: float = 0.3


def write_tiny_llama(shape: TinyLlama, directory: Path) -> None:
    """Write the model and its tokenizer into an existing directory."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    torch.manual_seed(shape.seed)
    model = AutoModelForCausalLM.from_config(_config(shape))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=shape.weight_std if parameter.dim() > 1 else 1.0)
    model.generation_config = GenerationConfig(bos_token_id=0, eos_token_id=1)
    dtype = getattr(torch, shape.dtype)
    model.to(dtype).save_pretrained(directory, max_shard_size=shape.max_shard_size)
    _write_tokenizer(directory)


def _config(shape: TinyLlama) -> Any:
    from transformers import LlamaConfig, MinistralConfig, MistralConfig

    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": shape.rope_theta}
    rope.update(dict(shape.rope_scaling))
    if shape.layer_types:
        kind: Any = partial(MinistralConfig, layer_types=list(shape.layer_types))
    elif shape.sliding_window:
        kind = MistralConfig
    else:
        kind = partial(LlamaConfig, attention_bias=shape.has_attention_bias)
        kind = partial(kind, mlp_bias=shape.has_mlp_bias)
    if shape.sliding_window:
        kind = partial(kind, sliding_window=shape.sliding_window)
    return kind(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        head_dim=shape.head_size,
        max_position_embeddings=shape.max_position_embeddings,
        tie_word_embeddings=shape.is_tied,
        rope_parameters=rope,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=None,
    )


def _write_tokenizer(directory: Path) -> None:
    """Write a byte-level tokenizer: 3 special tokens, then one token for each byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*SPECIAL_TOKENS, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    wrapped.chat_template = CHAT_TEMPLATE
    wrapped.save_pretrained(directory)
