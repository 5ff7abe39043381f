"""Deploys an engine: a Triton model repository that any tritonserver with this package serves.

In: an engine directory and the wishes of `DeployRequest`. Out: model directories, each complete.
Every style, decoupled (streams, many responses for a request) or not (unary calls): clients need
both, and two deployments of one engine share its host. Starts nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tidemill.base.errors import ConfigError
from tidemill.engine.format import CONFIG_FILE, ENGINE_FILE
from tidemill.frontends.triton.config_pbtxt import write_config
from tidemill.frontends.triton.deploy_layouts import PlannedModel, model_py, plan_models
from tidemill.frontends.triton.deploy_request import DeployRequest
from tidemill.frontends.triton.engine_config import EngineConfig, read_engine_config
from tidemill.frontends.triton.repository import (
    CONFIG_NAME,
    VERSION,
    ModelDirectory,
    write_model_directories,
)

__all__ = ["DeployReport", "DeployRequest", "deploy"]

TOKENIZER_JSON = "tokenizer.json"


@dataclass(frozen=True)
class DeployReport:
    """What was written. `model_dir` is the model that clients call, `model_dirs` all of them.

    Units: `engine_bytes` counts the engine's files, linked or copied.
    """

    model_dir: Path
    model_dirs: tuple[Path, ...]
    style: str
    is_decoupled: bool
    engine_bytes: int

    def __str__(self) -> str:
        mode = "decoupled" if self.is_decoupled else "one response a request"
        size = f"{self.engine_bytes / 1e6:.1f} MB"
        others = f", {len(self.model_dirs)} models" if len(self.model_dirs) > 1 else ""
        return f"{self.model_dir} ({self.style} style{others}, {mode}, engine {size})"


def deploy(request: DeployRequest) -> DeployReport:
    """Write the model directories for an engine.

    Raises: ConfigError naming every setting that is wrong, or the names that are taken, or what
    the engine directory lacks; nothing is written then.
    """
    request.check()
    engine_config = _read_engine_config(request)
    files = tuple(sorted(path for path in request.engine_dir.iterdir() if path.is_file()))
    directories = [
        _directory(request, model, files) for model in plan_models(request, engine_config)
    ]
    write_model_directories(directories, request.replace)
    paths = tuple(directory.path for directory in directories)
    return DeployReport(
        model_dir=paths[-1],
        model_dirs=paths,
        style=request.style,
        is_decoupled=request.streams,
        engine_bytes=sum(path.stat().st_size for path in files),
    )


def _directory(
    request: DeployRequest, model: PlannedModel, files: tuple[Path, ...]
) -> ModelDirectory:
    texts = {CONFIG_NAME: write_config(model.config)}
    if model.module is not None:
        texts[f"{VERSION}/__init__.py"] = ""
        texts[f"{VERSION}/model.py"] = model_py(model.module)
    return ModelDirectory(
        repository=request.model_repository,
        name=model.config.name,
        texts=texts,
        engine_files=files if model.has_engine else (),
        link=request.link,
    )


def _read_engine_config(request: DeployRequest) -> EngineConfig:
    """Read the engine directory's config.json; every file that is missing is named at once."""
    directory = request.engine_dir
    is_there = (directory / CONFIG_FILE).is_file()
    config = read_engine_config(directory) if is_there else EngineConfig()
    needed = [CONFIG_FILE, ENGINE_FILE]
    if request.style != "tokens":
        needed.append(TOKENIZER_JSON)
    missing = [name for name in needed if not (directory / name).is_file()]
    if missing:
        raise ConfigError(
            "the engine directory cannot be deployed",
            where=str(directory),
            expected=", ".join(needed),
            got="no " + ", no ".join(missing),
            hint="the directory that `tidemill build --output_dir` wrote"
            + ("; without a tokenizer, --style tokens" if TOKENIZER_JSON in missing else ""),
        )
    return config
