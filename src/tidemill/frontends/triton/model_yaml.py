"""Reads the model.yaml of TensorRT-LLM's llmapi model into what config.pbtxt says elsewhere.

In: a model directory whose versions hold model.yaml (or the file that LLM_CONFIG_PATH names). Out:
the engine directory and Triton's own settings in a parsed config, and what of the file has no
meaning here.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from tidemill.base.errors import ConfigError

TRITON_BLOCK = "triton_config"


def apply_model_yaml(config: Any, model: Path) -> list[str]:
    """Change a parsed config by the model.yaml of its highest version; return what was changed.

    Raises: ConfigError when the file is no mapping of settings, or a value is of another type.
    """
    name = os.environ.get("LLM_CONFIG_PATH", "model.yaml")
    versions = [path for path in model.iterdir() if path.is_dir() and path.name.isdecimal()]
    found = [path / name for path in sorted(versions, key=lambda path: int(path.name))]
    files = [path for path in found if path.is_file()]
    if not files:
        return []
    path = files[-1]
    settings = _read(path)
    triton = _mapping(path, TRITON_BLOCK, settings.pop(TRITON_BLOCK, None))
    changes = []
    engine = settings.pop("model", None)
    if engine:
        beside = path.parent / str(engine)
        directory = str(beside.resolve()) if beside.is_dir() else str(engine)
        config.parameters["gpt_model_path"].string_value = directory
        changes.append(f"{name}: model -> gpt_model_path {directory}")
    decoupled = triton.pop("decoupled", None)
    if decoupled is not None:
        if not isinstance(decoupled, bool):
            raise _refused(path, f"true or false as {TRITON_BLOCK}.decoupled", repr(decoupled))
        config.model_transaction_policy.decoupled = decoupled
        changes.append(f"{name}: decoupled {str(decoupled).lower()}")
    batch = triton.pop("max_batch_size", 0)
    if batch:
        changes.append(f"{name}: max_batch_size {batch} left out: the llmapi model has no batch")
    rest = sorted([*map(str, settings), *(f"{TRITON_BLOCK}.{key}" for key in triton)])
    if rest:
        changes.append(f"{name}: without meaning here: " + ", ".join(rest))
    return changes


def _read(path: Path) -> dict[Any, Any]:
    try:
        values = yaml.safe_load(path.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise _refused(path, "YAML", " ".join(str(error).split())) from error
    return _mapping(path, "the file", values)


def _mapping(path: Path, what: str, values: Any) -> dict[Any, Any]:
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise _refused(path, f"settings by name as {what}", repr(values)[:80])
    return values


def _refused(path: Path, expected: str, got: str) -> ConfigError:
    return ConfigError(
        "a model.yaml cannot be read",
        where=str(path),
        expected=expected,
        got=got,
        hint="mend the file; a model that tidemill deploy --style llmapi writes needs none",
    )
