"""The sample model as an engine, for benchmarks that are given none."""

from __future__ import annotations

from pathlib import Path

from tidemill.api.build import BuildRequest, build
from tidemill.api.convert import ConvertRequest, convert
from tidemill.api.sample import fetch_sample


def build_sample(directory: Path, dtype: str = "bfloat16") -> Path:
    """Convert and build the sample model; returns the engine's directory."""
    checkpoint = directory / "checkpoint"
    convert(ConvertRequest(fetch_sample(), checkpoint, dtype=dtype))
    return build(BuildRequest(checkpoint, directory / "engine")).engine_dir
