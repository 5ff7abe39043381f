"""Serves model repositories as users wrote them for TensorRT-LLM, from a copy that Triton accepts.

In: a repository. Out: the same one when every model loads as it is; otherwise a staged copy made of
links, in which the models with `platform: "tensorrt_llm"` have a config.pbtxt and a model.py that
work, each change said. The user's files are never touched.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from tidemill.frontends.triton.repository import CONFIG_NAME

FOREIGN_PLATFORM = re.compile(r"""^[^#\n]*\bplatform\s*:\s*["']tensorrt_llm["']""", re.MULTILINE)

Say = Callable[[str], None]


def stage_repository(repository: Path, staging: Path, say: Say) -> Path:
    """Return a repository that tritonserver can serve.

    Raises: ServerError for a config.pbtxt that asks for what cannot be served.
    """
    models = sorted(path for path in repository.iterdir() if path.is_dir())
    foreign = {path for path in models if is_foreign(path)}
    if not foreign:
        return repository
    # Read by protobuf itself, which only the `triton` extra brings; a plain repository served by a
    # container's tritonserver does without.
    from tidemill.frontends.triton.user_config import stage_model

    staging.mkdir()
    for model in models:
        if model in foreign:
            stage_model(model, staging / model.name, say)
        else:
            (staging / model.name).symlink_to(model.resolve())
    return staging


def is_foreign(model: Path) -> bool:
    """Say whether a model's config names the platform that no tritonserver has."""
    config = model / CONFIG_NAME
    return config.is_file() and bool(FOREIGN_PLATFORM.search(config.read_text("utf-8", "replace")))
