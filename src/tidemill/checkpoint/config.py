"""A checkpoint's config.json: the TensorRT-LLM fields that we use, typed and checked.

In: the parsed JSON. Out: a frozen `CheckpointConfig`, with defaults derived as TensorRT-LLM
derives them, or one error that lists every fault. Keys that are not ours are kept and written
back. Does not know which architectures exist nor which tensors they have.
Source: TensorRT-LLM docs checkpoint.md and PretrainedConfig; where they differ, the code.
"""

from __future__ import annotations

from collections.abc import Mapping as ReadOnlyDict
from dataclasses import dataclass, field
from typing import Any

from tidemill.base.dtypes import TRTLLM_TO_DTYPE, DType
from tidemill.base.errors import CheckpointError
from tidemill.base.mapping import Mapping
from tidemill.checkpoint.attention_windows import Windows, runtime_defaults_faults, windows_of
from tidemill.checkpoint.field_reader import FieldReader

MAX_LAYERS = 10_000
_DTYPES = tuple(TRTLLM_TO_DTYPE)
_POSITION_EMBEDDINGS = (
    "learned_absolute", "rope_gptj", "rope_gpt_neox", "long_rope", "alibi", "alibi_with_scale",
    "relative", "chatglm", "yarn", "mrope", "deferred",
)  # fmt: skip
# Older checkpoints say `share_embedding_table` where newer ones say `tie_word_embeddings`.
_OLD_TIE_KEY = "share_embedding_table"
_NO_QUANTIZATION: dict[str, Any] = {"quant_algo": None, "kv_cache_quant_algo": None}


@dataclass(frozen=True)
class CheckpointConfig:
    """What a checkpoint says of its model; one field per key, named as in the file."""

    architecture: str
    dtype: str
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_size: int
    intermediate_size: int
    max_position_embeddings: int
    rotary_embedding_dim: int
    logits_dtype: str = "float32"
    hidden_act: str = "silu"
    norm_epsilon: float = 1e-5
    position_embedding_type: str = "rope_gpt_neox"
    rotary_base: float = 10000.0
    rotary_scaling: dict[str, Any] | None = None
    attn_bias: bool = False
    mlp_bias: bool = False
    tie_word_embeddings: bool = False
    qk_layernorm: bool = False
    use_parallel_embedding: bool = False
    embedding_sharding_dim: int = 0
    mapping: Mapping = field(default_factory=Mapping)
    quantization: dict[str, Any] = field(default_factory=lambda: dict(_NO_QUANTIZATION))
    runtime_defaults: dict[str, Any] | None = None
    tidemill: dict[str, Any] | None = None
    mapping_extra: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def weight_dtype(self) -> DType:
        return TRTLLM_TO_DTYPE[self.dtype]

    @property
    def attention_windows(self) -> Windows:
        """Each layer's window in positions; None where a layer sees all."""
        return windows_of(self.runtime_defaults, self.num_hidden_layers)

    @staticmethod
    def from_json(values: ReadOnlyDict[str, Any], where: str) -> CheckpointConfig:
        """Read and check a parsed config.json.

        Raises: CheckpointError listing every missing or unacceptable field.
        """
        reader = FieldReader(values)
        config = _read_fields(reader)
        faults = list(reader.faults)
        if config is not None:
            faults += layout_faults(config) + runtime_defaults_faults(config.runtime_defaults)
        if faults or config is None:
            raise CheckpointError(
                f"checkpoint config has {len(faults)} fault(s)",
                where=where,
                expected="a TensorRT-LLM checkpoint config",
                got="; ".join(faults),
                hint="convert the model again, or correct these fields",
            )
        return config

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object to write, unknown keys included."""
        own = {name: getattr(self, name) for name in _OWN_KEYS}
        for name in ("runtime_defaults", "tidemill"):
            if own[name] is None:
                del own[name]
        own["mapping"] = {
            **self.mapping_extra,
            "world_size": self.mapping.world_size,
            "tp_size": self.mapping.tp_size,
            "pp_size": self.mapping.pp_size,
        }
        return {**own, **self.extra}


_NOT_KEYS = ("mapping_extra", "extra")
_OWN_KEYS = tuple(name for name in CheckpointConfig.__dataclass_fields__ if name not in _NOT_KEYS)


def _read_fields(reader: FieldReader) -> CheckpointConfig | None:
    architecture = reader.text("architecture")
    dtype = reader.choice("dtype", _DTYPES)
    vocab_size = reader.integer("vocab_size", 1)
    hidden_size = reader.integer("hidden_size", 1)
    num_layers = reader.integer("num_hidden_layers", 1, maximum=MAX_LAYERS)
    num_heads = reader.integer("num_attention_heads", 1)
    # A default of 1 stands in where the field it derives from is itself at fault.
    num_kv_heads = reader.integer("num_key_value_heads", 1, num_heads or 1)
    head_size = reader.integer("head_size", 1, max(1, hidden_size // (num_heads or 1)))
    rotary_dim = int((head_size or 0) * reader.number("rotary_pct", 1.0))
    mapping, mapping_extra = _read_mapping(reader)
    config = CheckpointConfig(
        architecture=architecture,
        dtype=dtype,
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_kv_heads,
        head_size=head_size,
        intermediate_size=reader.integer("intermediate_size", 1, 4 * (hidden_size or 1)),
        max_position_embeddings=reader.integer("max_position_embeddings", 1, 2048),
        rotary_embedding_dim=reader.integer("rotary_embedding_dim", 0, rotary_dim),
        logits_dtype=reader.choice("logits_dtype", _DTYPES, "float32"),
        hidden_act=reader.text("hidden_act", "gelu"),
        norm_epsilon=reader.number("norm_epsilon", 1e-5, maximum=1.0),
        position_embedding_type=reader.choice(
            "position_embedding_type", _POSITION_EMBEDDINGS, "learned_absolute"
        ),
        rotary_base=reader.number("rotary_base", 10000.0),
        rotary_scaling=reader.mapping("rotary_scaling"),
        attn_bias=reader.flag("attn_bias"),
        mlp_bias=reader.flag("mlp_bias"),
        tie_word_embeddings=reader.flag("tie_word_embeddings", reader.flag(_OLD_TIE_KEY)),
        qk_layernorm=reader.flag("qk_layernorm"),
        use_parallel_embedding=reader.flag("use_parallel_embedding"),
        embedding_sharding_dim=reader.integer("embedding_sharding_dim", 0, 0),
        mapping=mapping,
        quantization=reader.mapping("quantization") or dict(_NO_QUANTIZATION),
        runtime_defaults=reader.mapping("runtime_defaults"),
        tidemill=reader.mapping("tidemill"),
        mapping_extra=mapping_extra,
        extra={k: v for k, v in reader.values.items() if k not in _OWN_KEYS and k != _OLD_TIE_KEY},
    )
    return None if reader.faults else config


def _read_mapping(reader: FieldReader) -> tuple[Mapping, dict[str, Any]]:
    """Read the parallel layout; context parallelism is not ours and must be 1."""
    values = reader.mapping("mapping") or {}
    inner = FieldReader(values, prefix="mapping.")
    tp_size = inner.integer("tp_size", 1, 1)
    pp_size = inner.integer("pp_size", 1, 1)
    cp_size = inner.integer("cp_size", 1, 1)
    world_size = inner.integer("world_size", 1, tp_size * pp_size * cp_size)
    if not inner.faults and cp_size != 1:
        inner.faults.append(f"mapping.cp_size is {cp_size}, only 1 is supported")
    elif not inner.faults and world_size != tp_size * pp_size:
        inner.faults.append(
            f"mapping.world_size is {world_size}, tp_size x pp_size is {tp_size * pp_size}"
        )
    reader.faults += inner.faults
    known = ("world_size", "tp_size", "pp_size", "rank")
    extra = {key: value for key, value in values.items() if key not in known}
    return (Mapping() if inner.faults else Mapping(tp_size, pp_size)), extra


def layout_faults(config: CheckpointConfig) -> list[str]:
    """List everything that makes the sizes disagree with each other or with tp and pp."""
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    tp_size, pp_size = config.mapping.tp_size, config.mapping.pp_size
    is_hidden_split = config.use_parallel_embedding and config.embedding_sharding_dim == 1
    checks = {
        f"num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}": (
            heads % kv_heads == 0
        ),
        f"num_attention_heads {heads} is not a multiple of tp_size {tp_size}": (
            heads % tp_size == 0
        ),
        f"num_key_value_heads {kv_heads} and tp_size {tp_size}: neither divides the other": (
            kv_heads % tp_size == 0 or tp_size % kv_heads == 0
        ),
        f"intermediate_size {config.intermediate_size} is not a multiple of tp_size {tp_size}": (
            config.intermediate_size % tp_size == 0
        ),
        f"hidden_size {config.hidden_size} is not a multiple of tp_size {tp_size}": (
            not is_hidden_split or config.hidden_size % tp_size == 0
        ),
        f"pp_size {pp_size} is more than the {config.num_hidden_layers} layers": (
            pp_size <= config.num_hidden_layers
        ),
        f"embedding_sharding_dim is {config.embedding_sharding_dim}, not 0 or 1": (
            config.embedding_sharding_dim in (0, 1)
        ),
        f"rotary_embedding_dim {config.rotary_embedding_dim} is odd or over head_size": (
            config.rotary_embedding_dim % 2 == 0 and config.rotary_embedding_dim <= config.head_size
        ),
    }
    return [fault for fault, is_fine in checks.items() if not is_fine]
