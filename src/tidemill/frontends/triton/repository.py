"""Models' directories in a Triton model repository, all of them written whole or none at all.

In: the texts of their files and the engine's files. Out: `<repository>/<name>/config.pbtxt` and
`<name>/1/` with model.py and the engine beside it. Knows nothing of tensors or servers.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tidemill.base.errors import ConfigError
from tidemill.base.staging import StagedDirectory

VERSION = "1"
CONFIG_NAME = "config.pbtxt"
# Beside a staged repository: a link to the one that its user wrote.
ORIGIN_LINK = ".tidemill-repository"
LINK_MODES = ("copy", "hard", "symbolic")


@dataclass(frozen=True)
class ModelDirectory:
    """What a model's directory will hold.

    `texts` are generated files by path inside of the directory; `engine_files` are brought into
    the version directory by `link`: "copy", "hard" or "symbolic".
    """

    repository: Path
    name: str
    texts: Mapping[str, str]
    engine_files: tuple[Path, ...]
    link: str = "copy"

    @property
    def path(self) -> Path:
        return self.repository / self.name


def model_dirs(repository: Path) -> list[Path]:
    """Return the models of a repository; a hidden directory is none."""
    paths = sorted(repository.iterdir())
    return [path for path in paths if path.is_dir() and not path.name.startswith(".")]


def check_names(directories: Sequence[ModelDirectory], replace: bool) -> None:
    """Refuse names that are taken, unless they are to be replaced.

    Raises: ConfigError naming all of them.
    """
    taken = [directory for directory in directories if directory.path.exists()]
    if taken and not replace:
        raise ConfigError(
            "the repository already has a model of this name",
            where=", ".join(str(directory.path) for directory in taken),
            expected="a new name",
            got=", ".join(directory.name for directory in taken),
            hint="another name, or replace the old deployment",
        )


def write_model_directories(directories: Sequence[ModelDirectory], replace: bool = False) -> None:
    """Write the directories under temporary names and rename them when all are complete.

    Raises: ConfigError when names are taken and `replace` is false, or a link is not possible.
    """
    check_names(directories, replace)
    with ExitStack() as stack:
        all_staged = []
        for directory in directories:
            all_staged.append(stack.enter_context(StagedDirectory(directory.path)))
            _fill(directory, all_staged[-1].path)
        for staged in all_staged:
            staged.publish()


def _fill(directory: ModelDirectory, staging: Path) -> None:
    (staging / VERSION).mkdir(parents=True)
    for relative, text in directory.texts.items():
        (staging / relative).write_text(text, encoding="utf-8")
    for source in directory.engine_files:
        bring(source, staging / VERSION / source.name, directory.link)


def bring(source: Path, target: Path, link: str) -> None:
    """Put a file where a model has it, or a directory of its; directories are never hard links.

    Raises: ConfigError when a link is not possible.
    """
    if link == "symbolic":
        target.symlink_to(source.resolve())
        return
    if source.is_dir():
        shutil.copytree(source, target)
        return
    if link == "copy":
        shutil.copyfile(source, target)
        return
    try:
        os.link(source.resolve(), target)
    except OSError as error:
        raise ConfigError(
            "the engine's file cannot be hard-linked into the repository",
            where=str(source),
            expected="both on one file system that has hard links",
            got=str(error.strerror or error),
            hint="copy it, or link symbolically",
        ) from error
