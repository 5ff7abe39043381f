"""One place where a build's wishes become limits, with who chose each value.

In: a request and the checkpoint's config. Out: a `BuildConfig` that nothing changes later.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tidemill.base.dtypes import DType
from tidemill.base.errors import ConfigError, UnsupportedError
from tidemill.base.target import NAME_TO_TARGET, Target, host_targets
from tidemill.builder.build_config import BuildConfig
from tidemill.checkpoint.config import CheckpointConfig
from tidemill.checkpoint.stored_matrices import scheme_asked_for
from tidemill.checkpoint.weight_only import NO_QUANT_ALGO
from tidemill.quant.schemes import NONE, Quantization, find_cache_dtype, find_scheme

if TYPE_CHECKING:
    from tidemill.api.build import BuildRequest

DEFAULT_MAX_BATCH_SIZE = 64
DEFAULT_MAX_NUM_TOKENS = 1024
DEFAULT_TOKENS_PER_BLOCK = 32
# Of checkpoints with quantised layers: what they are, and which schemes run them.
_STORED = {"w8a16": ("int8", ("w8a16", "w8a8")), "fp8": ("fp8", ("fp8",))}
MOST = 1 << 24  # beyond it, tables of positions and blocks alone would fill a machine


@dataclass(frozen=True)
class ResolvedBuild:
    """Final limits; `chosen_by` says user, checkpoint or default for each field."""

    config: BuildConfig
    quantization: Quantization
    chosen_by: dict[str, str]
    notes: tuple[str, ...]


def resolve_build(request: BuildRequest, model: CheckpointConfig) -> ResolvedBuild:
    """Fill in what the user left open, and check what was given.

    Prompts are taken in chunks, so by default a prompt may be as long as the sequence allows.
    Raises: ConfigError naming the flag.
    """
    longest = model.max_position_embeddings
    max_seq_len = request.max_seq_len or longest
    max_batch_size = request.max_batch_size or DEFAULT_MAX_BATCH_SIZE
    config = BuildConfig(
        max_batch_size=max_batch_size,
        max_input_len=request.max_input_len or max_seq_len,
        max_seq_len=max_seq_len,
        max_num_tokens=request.max_num_tokens or max(DEFAULT_MAX_NUM_TOKENS, max_batch_size),
        max_beam_width=request.max_beam_width or 1,
        tokens_per_block=request.tokens_per_block or DEFAULT_TOKENS_PER_BLOCK,
    )
    _check(config)
    chosen_by = {
        name: "default" if getattr(request, name) is None else "user"
        for name in BuildConfig.__dataclass_fields__
    }
    quantization = replace(
        _resolve_quantization(request, model), cache=_resolve_cache_dtype(request, model)
    )
    for name, is_quantized in (
        ("quant", quantization.layers != NONE),
        ("quant_head", False),
        ("kv_cache_dtype", quantization.cache is not None),
    ):
        left_open = "checkpoint" if is_quantized else "default"
        chosen_by[name] = left_open if getattr(request, name) is None else "user"
    notes = []
    if max_seq_len > longest:
        notes.append(
            f"max_seq_len {max_seq_len} is beyond the {longest} positions that the model was "
            "trained for; answers may degrade past them"
        )
    return ResolvedBuild(config, quantization, chosen_by, tuple(notes))


def _resolve_quantization(request: BuildRequest, model: CheckpointConfig) -> Quantization:
    """The layers' scheme is the user's, and the head's follows it unless told otherwise.

    Left open, it is the checkpoint's, whose head stays as it is.
    Raises: ConfigError for unknown schemes, and for others than those of the checkpoint's weights.
    """
    asked_for = scheme_asked_for(model)
    layers = find_scheme(asked_for if request.quant is None else request.quant, "--quant")
    kind, allowed = _STORED.get(asked_for, ("", (layers.name,)))
    if layers.name not in allowed:
        raise ConfigError(
            f"the checkpoint's layers are {kind} already",
            where="--quant",
            expected=" or ".join(allowed),
            got=layers.name,
            hint=f"leave --quant out for {asked_for}, or convert the original weights again",
        )
    if request.quant_head is None:
        return Quantization(layers, NONE if request.quant is None else layers.for_head)
    return Quantization(layers, find_scheme(request.quant_head, "--quant_head"))


def _resolve_cache_dtype(request: BuildRequest, model: CheckpointConfig) -> DType | None:
    """The cache's type is the user's; left open, the one that the checkpoint asks for.

    Raises: ConfigError for unknown types.
    """
    if request.kv_cache_dtype is not None:
        return find_cache_dtype(request.kv_cache_dtype, "--kv_cache_dtype")
    algorithm = model.quantization.get("kv_cache_quant_algo")
    where = "config.json, quantization.kv_cache_quant_algo"
    if algorithm in (None, NO_QUANT_ALGO):
        return None
    return find_cache_dtype(str(algorithm).lower(), where)


def _check(config: BuildConfig) -> None:
    faults = [
        f"{name} {getattr(config, name)} (must be from 1 to {MOST})"
        for name in BuildConfig.__dataclass_fields__
        if not 1 <= getattr(config, name) <= MOST
    ]
    if config.max_input_len > config.max_seq_len:
        faults.append(
            f"max_input_len {config.max_input_len} exceeds max_seq_len {config.max_seq_len}"
        )
    if config.max_num_tokens < config.max_batch_size:
        faults.append(
            f"max_num_tokens {config.max_num_tokens} is below max_batch_size "
            f"{config.max_batch_size}: each running request needs one token a step"
        )
    if config.tokens_per_block % 16:
        faults.append(f"tokens_per_block {config.tokens_per_block} (must be a multiple of 16)")
    if faults:
        raise ConfigError(
            "the build's limits cannot be accepted",
            where="flags of build",
            expected="limits that fit together",
            got="; ".join(faults),
            hint="leave a flag out to have it chosen for you",
        )


def choose_target(name: str | None) -> Target:
    """Return the named target, or the best one that this machine has.

    Raises: ConfigError for an unknown name, UnsupportedError when this CPU has no target.
    """
    if name is not None:
        if name not in NAME_TO_TARGET:
            raise ConfigError(
                "unknown target",
                where="--target",
                expected="one of " + ", ".join(NAME_TO_TARGET),
                got=name,
                hint="leave --target out to build for this machine",
            )
        return NAME_TO_TARGET[name]
    targets = host_targets()
    if not targets:
        raise UnsupportedError(
            "this CPU is older than any target that engines are built for",
            where="/proc/cpuinfo",
            expected="AVX2, FMA and F16C (x86-64-v3), or NEON on aarch64",
            got="a CPU without them",
            hint="build on this machine for another one with --target",
        )
    return targets[0]
