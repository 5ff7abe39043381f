"""Reads the model.yaml of TensorRT-LLM's llmapi model into what config.pbtxt says elsewhere.

In: a model directory whose versions hold model.yaml (or the file that LLM_CONFIG_PATH names). Out:
the engine directory and Triton's own settings in a parsed config, and what of the file has no
meaning here. The file is lines of `key: value` with one block below `triton_config`; of other
blocks only the name is read.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tidemill.base.errors import ConfigError

TRITON_BLOCK = "triton_config"
SWITCHES = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def apply_model_yaml(config: Any, model: Path) -> list[str]:
    """Change a parsed config by the model.yaml of its highest version; return what was changed.

    Raises: ConfigError naming a line that cannot be read, or the value of a switch.
    """
    name = os.environ.get("LLM_CONFIG_PATH", "model.yaml")
    versions = [path for path in model.iterdir() if path.is_dir() and path.name.isdecimal()]
    found = [path / name for path in sorted(versions, key=lambda path: int(path.name))]
    files = [path for path in found if path.is_file()]
    if not files:
        return []
    settings = read_settings(files[-1])
    changes = []
    engine = settings.pop("model", None)
    if engine:
        beside = files[-1].parent / engine
        directory = str(beside.resolve()) if beside.is_dir() else engine
        config.parameters["gpt_model_path"].string_value = directory
        changes.append(f"{name}: model -> gpt_model_path {directory}")
    decoupled = settings.pop(f"{TRITON_BLOCK}.decoupled", None)
    if decoupled is not None:
        config.model_transaction_policy.decoupled = _switch(files[-1], decoupled)
        changes.append(f"{name}: decoupled {decoupled.lower()}")
    batch = settings.pop(f"{TRITON_BLOCK}.max_batch_size", "0")
    if batch != "0":
        changes.append(f"{name}: max_batch_size {batch} left out: the llmapi model has no batch")
    if settings:
        changes.append(f"{name}: without meaning here: " + ", ".join(sorted(settings)))
    return changes


def read_settings(path: Path) -> dict[str, str]:
    """Return the values of a file by key, those of Triton's block as `triton_config.key`.

    Raises: ConfigError naming a line that is no `key: value`.
    """
    settings: dict[str, str] = {}
    block = ""
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        text = line.split(" #")[0].rstrip()
        if not text.strip() or text.lstrip().startswith("#") or text.strip() in ("---", "..."):
            continue
        is_inside = text[0] in " \t-"
        if is_inside and block != TRITON_BLOCK:
            continue  # of blocks that mean nothing here
        key, colon, value = text.strip().partition(":")
        if not colon or (is_inside and not block):
            raise ConfigError(
                "a model.yaml cannot be read",
                where=f"{path}, line {number}",
                expected="key: value",
                got=repr(line),
                hint="tidemill deploy --style llmapi needs no model.yaml",
            )
        value = value.strip().strip("'\"")
        if is_inside:
            settings[f"{block}.{key.strip()}"] = value
            continue
        block = key if not value else ""
        if value or key != TRITON_BLOCK:
            settings[key] = value
    return settings


def _switch(path: Path, text: str) -> bool:
    if text.lower() not in SWITCHES:
        raise ConfigError(
            "a model.yaml has a value that cannot be read",
            where=f"{path}, {TRITON_BLOCK}.decoupled",
            expected=" or ".join(SWITCHES),
            got=repr(text),
        )
    return SWITCHES[text.lower()]
