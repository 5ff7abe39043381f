"""Convert: from a model as published to a checkpoint in TensorRT-LLM's format.

In: a `ConvertRequest`. Out: a checkpoint directory, complete or not there at all, and a
`ConvertReport`. Each tensor is read, converted, split and written before the next, so that memory
stays near the largest tensor whatever the model's size.
"""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tidemill.base.dtypes import TRTLLM_TO_DTYPE
from tidemill.base.errors import ConfigError
from tidemill.base.mapping import Mapping
from tidemill.base.progress import Progress

if TYPE_CHECKING:
    from tidemill.api.convert_sources import OpenedModel
    from tidemill.checkpoint.config import CheckpointConfig
    from tidemill.checkpoint.writer import WrittenCheckpoint


_DTYPES = ("auto", *TRTLLM_TO_DTYPE)
PRECISIONS = ("int8", "int4")


@dataclass(frozen=True)
class ConvertRequest:
    """What to convert, to where, and how it is laid out; names are those of the flags."""

    model_dir: Path | str
    output_dir: Path | str
    tp_size: int = 1
    pp_size: int = 1
    dtype: str = "auto"
    workers: int = 1
    weight_map: Path | str | None = None
    use_parallel_embedding: bool = False
    embedding_sharding_dim: int = 0
    save_config_only: bool = False
    use_weight_only: bool = False
    weight_only_precision: str = "int8"
    int8_kv_cache: bool = False
    fp8_kv_cache: bool = False


@dataclass(frozen=True)
class ConvertReport:
    """What was done; `source_kind` is huggingface, gguf, tensorrt_llm or custom."""

    output_dir: Path
    num_tensors: int
    total_bytes: int
    seconds: float
    peak_memory_bytes: int
    dtype: str
    source_kind: str
    notes: tuple[str, ...] = ()


def convert(request: ConvertRequest, progress: Progress | None = None) -> ConvertReport:
    """Write a checkpoint; `progress` is told (tensor name, bytes done, bytes in all).

    Raises: ConfigError for unacceptable settings, CheckpointError for bad files,
    UnsupportedError for models outside of what this version can do, BuildError when the disk
    refuses. Nothing is written then.
    """
    started = time.perf_counter()
    _check_request(request)
    # Imported here so that importing the API costs nothing.
    from tidemill.api.convert_sources import open_model

    weight_map = None if request.weight_map is None else Path(request.weight_map)
    model = open_model(request.model_dir, weight_map)
    config = _laid_out(model.config, request)
    written = _write(model, config, request, progress)
    return ConvertReport(
        output_dir=Path(request.output_dir),
        num_tensors=written.num_tensors,
        total_bytes=written.total_bytes,
        seconds=time.perf_counter() - started,
        peak_memory_bytes=_peak_memory_bytes(),
        dtype=config.dtype,
        source_kind=model.kind,
        notes=tuple(model.notes),
    )


def _write(
    model: OpenedModel,
    config: CheckpointConfig,
    request: ConvertRequest,
    progress: Progress | None,
) -> WrittenCheckpoint:
    from tidemill.api.convert_weight_only import weight_only_tensors
    from tidemill.checkpoint.numbers_only import numbers_only
    from tidemill.checkpoint.weight_only import is_weight_only
    from tidemill.checkpoint.writer import CheckpointWriter, TensorToWrite, WrittenCheckpoint

    loaders = {name: numbers_only(name, load) for name, load in model.loaders.items()}
    model = replace(model, loaders=loaders)
    tensors = [
        TensorToWrite(name, row, partial(model.loaders[name], config.weight_dtype))
        for name, row in model.rows.items()
    ]
    if is_weight_only(config):
        tensors = weight_only_tensors(tensors, model, config)
    with CheckpointWriter(Path(request.output_dir), config) as writer:
        written = WrittenCheckpoint(num_tensors=0, total_bytes=0, content_hash="")
        if not request.save_config_only:
            written = writer.write_tensors(tensors, request.workers, progress)
            writer.write_files(model.files)
        writer.commit(model.label, written.content_hash)
    return written


def _check_request(request: ConvertRequest) -> None:
    checks = {
        f"tp_size {request.tp_size} (from 1)": request.tp_size >= 1,
        f"pp_size {request.pp_size} (from 1)": request.pp_size >= 1,
        f"workers {request.workers} (from 1)": request.workers >= 1,
        f"dtype {request.dtype} (one of {', '.join(_DTYPES)})": request.dtype in _DTYPES,
        "int8_kv_cache and fp8_kv_cache (at most one)": (
            not (request.int8_kv_cache and request.fp8_kv_cache)
        ),
        f"embedding_sharding_dim {request.embedding_sharding_dim} (0 or 1)": (
            request.embedding_sharding_dim in (0, 1)
        ),
        f"weight_only_precision {request.weight_only_precision} ({' or '.join(PRECISIONS)})": (
            request.weight_only_precision in PRECISIONS
        ),
    }
    faults = [fault for fault, is_fine in checks.items() if not is_fine]
    if faults:
        raise ConfigError(
            "settings of convert cannot be accepted",
            where="flags of convert",
            expected="values within the bounds in brackets",
            got="; ".join(faults),
            hint="'tidemill convert --help' lists the flags",
        )


def _laid_out(config: CheckpointConfig, request: ConvertRequest) -> CheckpointConfig:
    """Return the config in the requested type and layout."""
    from tidemill.checkpoint.config import layout_faults
    from tidemill.checkpoint.weight_only import as_int4, as_weight_only, is_weight_only

    # Splits of experts and attention follow tp_size; those of the source layout are stale.
    kept = {k: v for k, v in config.mapping_extra.items() if not k.startswith(("moe_", "attn_"))}
    laid_out = replace(
        config,
        dtype=config.dtype if request.dtype == "auto" else request.dtype,
        mapping=Mapping(request.tp_size, request.pp_size),
        mapping_extra=kept,
        use_parallel_embedding=request.use_parallel_embedding,
        embedding_sharding_dim=request.embedding_sharding_dim,
    )
    if request.use_weight_only and request.weight_only_precision == "int4":
        laid_out = as_int4(laid_out)
    elif request.use_weight_only or is_weight_only(config):
        laid_out = as_weight_only(laid_out)
    if request.int8_kv_cache or request.fp8_kv_cache:
        algorithm = "INT8" if request.int8_kv_cache else "FP8"
        quantization = {**laid_out.quantization, "kv_cache_quant_algo": algorithm}
        laid_out = replace(laid_out, quantization=quantization)
    faults = layout_faults(laid_out)
    if faults:
        raise ConfigError(
            "model cannot be laid out as asked",
            where=str(request.model_dir),
            expected="sizes that tp_size and pp_size divide",
            got="; ".join(faults),
            hint="choose other --tp_size and --pp_size",
        )
    return laid_out


def _peak_memory_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
