"""Custom checkpoints: a source seen under other names, by the user's weight map file.

In: a source and a JSON file such as

    {"tensors": {
        "tok.weight": "model.embed_tokens.weight",
        "blocks.{i}.wq": {"to": "model.layers.{i}.self_attn.q_proj.weight", "transpose": true},
        "step_count": null
    }}

Keys are the file's names, values are Hugging Face or TensorRT-LLM checkpoint names; `{i}` is a
layer index; `transpose` says that the file has [in, out]; null says: not a weight, leave it out.
Out: a source with the new names. Does not know which names a model needs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tidemill.base.dtypes import DType
from tidemill.base.errors import CheckpointError, ConfigError
from tidemill.checkpoint.file_bytes import Array
from tidemill.checkpoint.json_file import read_json_object
from tidemill.checkpoint.source import TensorSource


@dataclass(frozen=True)
class _Rename:
    pattern: str
    target: str | None
    is_transposed: bool = False


class CustomSource:
    """A view of another source: renamed, and transposed where the map says so."""

    def __init__(self, inner: TensorSource, map_path: Path) -> None:
        self._inner = inner
        self._new_to_old: dict[str, tuple[str, bool]] = {}
        renames = _read_map(map_path)
        used: set[str] = set()
        for name in inner.names():
            new_name, rename = _apply(renames, name)
            if rename is not None:
                used.add(rename.pattern)
            if new_name is None:
                continue
            if new_name in self._new_to_old:
                other = self._new_to_old[new_name][0]
                raise CheckpointError(
                    "weight map gives one name to two tensors",
                    where=str(map_path),
                    expected=f"one source for {new_name}",
                    got=f"{other} and {name}",
                    hint="make the patterns of the map narrower (docs/CUSTOM_CHECKPOINT.md)",
                )
            self._new_to_old[new_name] = (name, rename is not None and rename.is_transposed)
        idle = [rename.pattern for rename in renames if rename.pattern not in used]
        if idle:
            raise CheckpointError(
                "weight map names tensors that do not exist",
                where=str(map_path),
                expected="every key matches a tensor of the model files",
                got="no match for " + ", ".join(idle),
                hint="the files hold, for example: " + ", ".join(inner.names()[:5]),
            )

    def names(self) -> list[str]:
        return list(self._new_to_old)

    def shape(self, name: str) -> tuple[int, ...]:
        old_name, is_transposed = self._new_to_old[name]
        shape = self._inner.shape(old_name)
        return shape[::-1] if is_transposed else shape

    def dtype(self, name: str) -> DType:
        return self._inner.dtype(self._new_to_old[name][0])

    def read(self, name: str) -> Array:
        """Read a whole tensor in storage type, rows of dimension 0 contiguous."""
        old_name, is_transposed = self._new_to_old[name]
        values = self._inner.read(old_name)
        return np.ascontiguousarray(values.T) if is_transposed else values

    def has_cheap_rows(self, name: str) -> bool:
        old_name, is_transposed = self._new_to_old[name]
        return not is_transposed and self._inner.has_cheap_rows(old_name)

    def read_rows(self, name: str, start: int, stop: int) -> Array:
        """Read rows [start, stop); a transposed tensor is read whole for it."""
        old_name, is_transposed = self._new_to_old[name]
        if is_transposed:
            return np.ascontiguousarray(self._inner.read(old_name)[:, start:stop].T)
        return self._inner.read_rows(old_name, start, stop)


def _read_map(path: Path) -> list[_Rename]:
    tensors = read_json_object(path).get("tensors")
    if not isinstance(tensors, dict):
        raise ConfigError(
            "weight map is malformed",
            where=str(path),
            expected='an object "tensors" of source name to target name',
            got=type(tensors).__name__,
            hint="docs/CUSTOM_CHECKPOINT.md shows the format",
        )
    renames, faults = [], []
    for pattern, value in tensors.items():
        rename = _read_entry(pattern, value)
        if rename is None:
            faults.append(f"{pattern}: {value!r}")
        else:
            renames.append(rename)
    if faults:
        raise ConfigError(
            "weight map is malformed",
            where=str(path),
            expected='a name, null, or {"to": name, "transpose": true or false}; one {i} at most',
            got="; ".join(faults),
            hint="docs/CUSTOM_CHECKPOINT.md shows the format",
        )
    return renames


def _read_entry(pattern: str, value: Any) -> _Rename | None:
    if pattern.count("{i}") > 1:
        return None
    if value is None or isinstance(value, str):
        return _Rename(pattern, value)
    if isinstance(value, dict) and set(value) <= {"to", "transpose"}:
        target, transpose = value.get("to"), value.get("transpose", False)
        if isinstance(target, str) and isinstance(transpose, bool):
            return _Rename(pattern, target, transpose)
    return None


def _apply(renames: list[_Rename], name: str) -> tuple[str | None, _Rename | None]:
    """Find the rule for a name; a name without a rule keeps its own."""
    for rename in renames:
        expression = re.escape(rename.pattern).replace(re.escape("{i}"), r"(?P<i>\d+)")
        match = re.fullmatch(expression, name)
        if match is not None:
            target = rename.target
            if target is not None and "i" in match.groupdict():
                target = target.replace("{i}", match["i"])
            return target, rename
    return name, None
