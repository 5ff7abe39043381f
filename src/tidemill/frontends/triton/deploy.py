"""Deploys an engine: a Triton model repository that any tritonserver with this package serves.

In: an engine directory and the wishes of `DeployRequest`. Out: one model directory, complete.
Both styles, each decoupled (streams, many responses for a request) or not (unary calls): clients
need both, and two deployments of one engine share its host. Starts nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tidemill.base.errors import ConfigError
from tidemill.base.json_text import parse_json
from tidemill.frontends.triton.config_pbtxt import ModelConfig, write_config
from tidemill.frontends.triton.repository import (
    CONFIG_NAME,
    LINK_MODES,
    VERSION,
    ModelDirectory,
    write_model_directory,
)
from tidemill.frontends.triton.tensors import (
    TEXT_INPUTS,
    TEXT_OUTPUTS,
    TOKENS_INPUTS,
    TOKENS_OUTPUTS,
)

STYLES = ("text", "tokens")
CONFIG_JSON = "config.json"
TOKENIZER_JSON = "tokenizer.json"
NAME_PATTERN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*")

MODEL_PY = '''"""Serves the engine beside this file through Triton's Python backend."""

from tidemill.frontends.triton.{module} import {model} as TritonPythonModel

__all__ = ["TritonPythonModel"]
'''
MODEL_OF_STYLE = {"text": ("text_model", "TextModel"), "tokens": ("tokens_model", "TokensModel")}


@dataclass(frozen=True)
class DeployRequest:
    """What to deploy, where and how.

    `is_decoupled` unset means the style's own: text streams, tokens answer once. Units:
    `max_batch_size` counts rows of one Triton request, unset means the engine's own; the tokens
    style packs prompts and has none. `exclude_input_in_output` is the default for requests that
    do not say; unary text answers begin with the prompt unless excluded, as in TensorRT-LLM.
    """

    engine_dir: Path
    model_repository: Path
    name: str
    style: str = "text"
    is_decoupled: bool | None = None
    max_batch_size: int | None = None
    exclude_input_in_output: bool = False
    link: str = "copy"
    replace: bool = False


@dataclass(frozen=True)
class DeployReport:
    """What was written. Units: `engine_bytes` counts the engine's files, linked or copied."""

    model_dir: Path
    style: str
    is_decoupled: bool
    engine_bytes: int

    def __str__(self) -> str:
        mode = "decoupled" if self.is_decoupled else "one response a request"
        size = f"{self.engine_bytes / 1e6:.1f} MB"
        return f"{self.model_dir} ({self.style} style, {mode}, engine {size})"


def deploy(request: DeployRequest) -> DeployReport:
    """Write a model directory for an engine.

    Raises: ConfigError naming every setting that is wrong, or the name that is taken, or what the
    engine directory lacks; nothing is written then.
    """
    _check_settings(request)
    engine_config = _read_engine_config(request)
    files = tuple(sorted(path for path in request.engine_dir.iterdir() if path.is_file()))
    config = _model_config(request, engine_config)
    directory = ModelDirectory(
        repository=request.model_repository,
        name=request.name,
        texts={
            CONFIG_NAME: write_config(config),
            f"{VERSION}/__init__.py": "",
            f"{VERSION}/model.py": model_py(request.style),
        },
        engine_files=files,
        link=request.link,
    )
    return DeployReport(
        model_dir=write_model_directory(directory, request.replace),
        style=request.style,
        is_decoupled=config.is_decoupled,
        engine_bytes=sum(path.stat().st_size for path in files),
    )


def model_py(style: str) -> str:
    """Return the text of the model.py that serves a style."""
    module, model = MODEL_OF_STYLE[style]
    return MODEL_PY.format(module=module, model=model)


def _check_settings(request: DeployRequest) -> None:
    faults = []
    if request.style not in STYLES:
        faults.append(("style", " or ".join(STYLES), request.style))
    if request.link not in LINK_MODES:
        faults.append(("link", " or ".join(LINK_MODES), request.link))
    if not NAME_PATTERN.fullmatch(request.name):
        faults.append(("name", "letters, digits, '_', '-' and '.'", repr(request.name)))
    if request.max_batch_size is not None and request.max_batch_size < 0:
        faults.append(("max_batch_size", "0 or more", str(request.max_batch_size)))
    if request.style == "tokens" and request.max_batch_size:
        faults.append(
            ("max_batch_size", "0 (prompts are packed end to end)", str(request.max_batch_size))
        )
    if faults:
        raise ConfigError(
            "the deployment has settings that cannot be accepted",
            where=", ".join(name for name, _, _ in faults),
            expected="; ".join(f"{name} {expected}" for name, expected, _ in faults),
            got="; ".join(f"{name} {got}" for name, _, got in faults),
            hint="tidemill deploy --help",
        )


def _read_engine_config(request: DeployRequest) -> dict[str, Any]:
    """Read the engine directory's config.json; every file that is missing is named at once."""
    path = request.engine_dir / CONFIG_JSON
    config: Any = {}
    if path.is_file():
        try:
            config = parse_json(path.read_bytes())
        except (OSError, ValueError) as error:
            raise _engine_fault(request, "a readable config.json", str(error)) from error
    if not isinstance(config, dict):
        raise _engine_fault(request, "config.json with an object", type(config).__name__)
    mapping = config.get("pretrained_config", {}).get("mapping", {})
    needed = [CONFIG_JSON, *(f"rank{rank}.engine" for rank in range(mapping.get("world_size", 1)))]
    if request.style == "text":
        needed.append(TOKENIZER_JSON)
    missing = [name for name in needed if not (request.engine_dir / name).is_file()]
    if missing:
        raise _engine_fault(request, ", ".join(needed), "no " + ", no ".join(missing))
    return config


def _engine_fault(request: DeployRequest, expected: str, got: str) -> ConfigError:
    return ConfigError(
        "the engine directory cannot be deployed",
        where=str(request.engine_dir),
        expected=expected,
        got=got,
        hint="the directory that `tidemill build --output_dir` wrote"
        + ("; without a tokenizer, --style tokens" if TOKENIZER_JSON in got else ""),
    )


def _model_config(request: DeployRequest, engine_config: dict[str, Any]) -> ModelConfig:
    is_text = request.style == "text"
    max_batch_size = request.max_batch_size
    if max_batch_size is None:
        build_config = engine_config.get("build_config", {})
        max_batch_size = int(build_config.get("max_batch_size", 1)) if is_text else 0
    if is_text:
        parameters = {"exclude_input_in_output": str(request.exclude_input_in_output).lower()}
    else:
        mapping = engine_config.get("pretrained_config", {}).get("mapping", {})
        parameters = {"tensor_parallel_size": str(mapping.get("tp_size", 1))}
    return ModelConfig(
        name=request.name,
        max_batch_size=max_batch_size,
        inputs=TEXT_INPUTS if is_text else TOKENS_INPUTS,
        outputs=TEXT_OUTPUTS if is_text else TOKENS_OUTPUTS,
        is_decoupled=is_text if request.is_decoupled is None else request.is_decoupled,
        parameters=parameters,
    )
