"""Deploys a model directory that a user wrote for TensorRT-LLM: `tidemill deploy --from`.

In: a directory with config.pbtxt and versions. Out: the same in a repository, adapted so that any
tritonserver with this package serves it without a change; each change is said. Complete or not
there at all; the user's own files are never touched.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import text_format

from tidemill.base.errors import ConfigError
from tidemill.base.staging import StagedDirectory
from tidemill.frontends.triton.installation import BACKEND_NAMES
from tidemill.frontends.triton.repository import CONFIG_NAME, ModelDirectory, check_names
from tidemill.frontends.triton.user_config import read_user_config, stage_model

Say = Callable[[str], None]


@dataclass(frozen=True)
class DeployFromRequest:
    """Which model directory to deploy where; `link` is how its files are brought along."""

    source: Path
    model_repository: Path
    link: str = "copy"
    replace: bool = False


def deploy_from(request: DeployFromRequest, say: Say) -> Path:
    """Write the adapted model directory and return it.

    Raises: ConfigError when there is no config.pbtxt or the name is taken, ServerError when the
    config cannot be read or its tensors are those of no model here.
    """
    if not (request.source / CONFIG_NAME).is_file():
        raise ConfigError(
            "there is no model to deploy",
            where=str(request.source),
            expected=f"a model directory: {CONFIG_NAME} and versions beside it",
            got=f"no {CONFIG_NAME}" if request.source.is_dir() else "no such directory",
            hint="name the directory of one model, not the repository; engines go by --engine_dir",
        )
    source = request.source.resolve()
    planned = ModelDirectory(request.model_repository, source.name, {}, ())
    check_names([planned], request.replace)
    with StagedDirectory(planned.path) as staged:
        stage_model(source, staged.path, say, request.link)
        _name_python_backend(staged.path / CONFIG_NAME, source.name, say)
        staged.publish()
    return planned.path


def _name_python_backend(path: Path, model: str, say: Say) -> None:
    """Name the backend that every tritonserver has; ours, by their names, only `serve` installs."""
    config = read_user_config(path)
    if config.backend in BACKEND_NAMES:
        say(f'{model}: backend "{config.backend}" -> "python"')
        config.backend = "python"
        path.write_text(text_format.MessageToString(config), encoding="utf-8")
