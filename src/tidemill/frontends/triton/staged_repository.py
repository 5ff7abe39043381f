"""Serves model repositories as users wrote them for TensorRT-LLM, from a copy that Triton accepts.

In: a repository. Out: the same one when every model loads as it is; otherwise a staged copy made of
links, in which two kinds of model are adapted, each change said: those with `platform:
"tensorrt_llm"`, and those of TensorRT-LLM's Python models, whose model.py needs packages of its
own; and every config.pbtxt has the settings that the command line overrides. Hidden directories,
such as those of a deploy that is under way, are left out: a server would refuse to start. And a
repository whose path a shell would take apart is served by a plain one. The user's files are never
touched.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from tidemill.frontends.triton.config_pbtxt import write_parameters
from tidemill.frontends.triton.repository import CONFIG_NAME, ORIGIN_LINK, model_dirs

FOREIGN_PLATFORM = re.compile(r"""^[^#\n]*\bplatform\s*:\s*["']tensorrt_llm["']""", re.MULTILINE)

# Imports that only upstream's own models have; a user's model with our tensors stays as it is.
FOREIGN_MODEL_PY = re.compile(
    r"^\s*(?:from|import)\s+(?:tensorrt_llm|transformers|lib\.(?:decode|triton_decoder))\b",
    re.MULTILINE,
)
PYTHON_BACKEND = re.compile(r"""^[^#\n]*\bbackend\s*:\s*["']python["']""", re.MULTILINE)
# Triton's stub is started by a shell that is given the paths as they are.
PLAIN_PATH = re.compile(r"[\w@%+=:,./-]+")

Say = Callable[[str], None]


def stage_repository(
    repository: Path, staging: Path, say: Say, settings: Mapping[str, str] | None = None
) -> Path:
    """Return a repository that tritonserver can serve.

    With `settings`, models whose config.pbtxt says otherwise are served with these parameters.

    Raises: ServerError for a config.pbtxt that asks for what cannot be served.
    """
    models = model_dirs(repository)
    has_hidden = any(path.is_dir() and path not in models for path in repository.iterdir())
    foreign = {path for path in models if is_foreign(path) or has_foreign_code(path)}
    is_plain = PLAIN_PATH.fullmatch(str(repository.resolve()))
    if is_plain and not (foreign or settings or has_hidden):
        return repository
    if foreign:
        # Read by protobuf itself, which only the `triton` extra brings; a plain repository served
        # by a container's tritonserver does without.
        from tidemill.frontends.triton.user_config import stage_model

    staging.mkdir()
    (staging.parent / ORIGIN_LINK).symlink_to(repository.resolve())
    for model in models:
        if model in foreign:
            stage_model(model, staging / model.name, say)
        elif settings and (model / CONFIG_NAME).is_file():
            _link_files(model, staging / model.name)
        else:
            (staging / model.name).symlink_to(model.resolve())
        config = staging / model.name / CONFIG_NAME
        if settings and config.is_file():
            with config.open("a", encoding="utf-8") as text:
                text.write("\n" + write_parameters(settings))
    return staging


def _link_files(model: Path, staged: Path) -> None:
    """Stage a model by links, with a config.pbtxt of its own."""
    staged.mkdir()
    for path in model.iterdir():
        if path.name == CONFIG_NAME:
            shutil.copyfile(path, staged / path.name)
        else:
            (staged / path.name).symlink_to(path.resolve())


def is_foreign(model: Path) -> bool:
    """Say whether a model's config names the platform that no tritonserver has."""
    config = model / CONFIG_NAME
    return config.is_file() and bool(FOREIGN_PLATFORM.search(config.read_text("utf-8", "replace")))


def has_foreign_code(model: Path) -> bool:
    """Say whether a model for the Python backend has upstream's own code, or none at all."""
    config = model / CONFIG_NAME
    if not config.is_file() or not PYTHON_BACKEND.search(config.read_text("utf-8", "replace")):
        return False
    versions = [path for path in model.iterdir() if path.is_dir() and path.name.isdecimal()]
    return any(is_foreign_code(version / "model.py") for version in versions)


def is_foreign_code(model_py: Path) -> bool:
    """Say whether a model.py is upstream's, or missing."""
    if not model_py.is_file():
        return True
    return bool(FOREIGN_MODEL_PY.search(model_py.read_text("utf-8", errors="replace")))
