"""Makes small engines for tests: a manifest with a few ops, and a directory written from it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tidemill.base.dtypes import DType
from tidemill.engine.manifest import (
    CodeSection,
    KvLayout,
    Manifest,
    Operand,
    PlanOp,
    Tactic,
    TensorSpec,
)
from tidemill.engine.writer import EngineWriter

CODE_IMAGE = bytes(range(256)) * 17 + b"\xc3"
CONFIG: dict[str, object] = {
    "version": "0.1.0",
    "pretrained_config": {"architecture": "LlamaForCausalLM", "dtype": "bfloat16"},
    "build_config": {"max_batch_size": 7, "max_seq_len": 131, "gemm_plugin": "auto"},
}


def make_manifest(num_ops: int = 3) -> Manifest:
    """Return a manifest with every kind of field in use."""
    plan = tuple(
        PlanOp(
            kernel=f"linear_{index % 2}",
            op="linear",
            layer=index - 1,
            output=f"y{index}",
            operands=(Operand("x", "arena", 64 * index), Operand("rows", "immediate", -1)),
            flops_per_row=2.0 * 37 * 53,
            bytes_fixed=2.0 * 37 * 53,
        )
        for index in range(num_ops)
    )
    buffers = tuple(
        TensorSpec(f"y{index}", DType.F32, "T", 53, 64, 64 * index, 256, index, index + 1)
        for index in range(num_ops)
    )
    return Manifest(
        tidemill_version="0.1.0",
        format_version=0,
        model_name="tiny",
        rank=0,
        world_size=1,
        graph_text="graph tiny {\n}\n",
        plan=plan,
        buffers=buffers,
        inputs=(TensorSpec("tokens", DType.I32, "T", 1, 1, 0, 4),),
        arena_bytes=64 * num_ops + 256,
        scratch_bytes_per_thread=4096,
        kv=KvLayout(3, 2, 16, 32, DType.BF16),
        code=CodeSection("x86-64-v3", ("avx2", "fma"), {"linear_0": 0, "linear_1": 64}, "llvm 20"),
        sections={},
        source_checkpoint="/models/tiny",
        source_hash="0123456789abcdef",
        tactics=(Tactic("linear", "37x53", "rows_4", "measured", 12.5, 8, 2e6, 4e3, 0.5),),
        chosen_by={"max_batch_size": "user", "max_seq_len": "default"},
    )


def write_engine(
    output_dir: Path,
    weights: Mapping[str, npt.NDArray[Any]] | None = None,
    manifest: Manifest | None = None,
    extra_files: tuple[Path, ...] = (),
) -> Path:
    """Write a small engine and return its directory."""
    if weights is None:
        weights = {"w": np.arange(37 * 53, dtype=np.uint16).reshape(37, 53)}
    with EngineWriter(output_dir) as writer:
        for name, data in weights.items():
            writer.add_weight(name, data)
        return writer.finish(manifest or make_manifest(), CODE_IMAGE, CONFIG, extra_files)
