"""Finds the engine of whatever a user names, converting and building it once where needed.

In: an engine directory, or anything that convert reads, and options. Out: an engine directory. What
is built goes into the cache under a hash of the source's content, the options, this version and
the target; it appears there complete or not at all, and whoever wants the same at the same time
waits for the first. Knows nothing of how engines are used.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tidemill.base.cache_dir import cache_dir
from tidemill.base.errors import ConfigError
from tidemill.base.version import __version__

Say = Callable[[str], None]

ENGINE_SUFFIX = ".engine"
# Of a directory, what convert reads; other files in it change nothing.
SOURCE_SUFFIXES = (".safetensors", ".gguf", ".json", ".jinja", ".model")
_HASHES_FILE = "hashes.json"
_PIECE_BYTES = 1 << 22


@dataclass(frozen=True)
class EngineOptions:
    """What shapes an engine; None leaves the choice to build. Units: tokens, requests."""

    dtype: str = "auto"
    max_batch_size: int | None = None
    max_input_len: int | None = None
    max_seq_len: int | None = None
    max_num_tokens: int | None = None
    tokens_per_block: int | None = None

    @property
    def given(self) -> dict[str, Any]:
        """The options that were not left open."""
        default = asdict(EngineOptions())
        return {name: value for name, value in asdict(self).items() if value != default[name]}


def default_cache_dir() -> Path:
    """Return where engines are kept unless the caller says otherwise."""
    return cache_dir("engines")


def find_or_build(
    model: Path | str, options: EngineOptions, cache_dir: Path | None, say: Say | None = None
) -> Path:
    """Return an engine directory for a model, building it if it is not in the cache.

    `say` is told one line when a build begins and one when it is done. Raises: ConfigError for
    options that a built engine cannot follow; what convert and build raise.
    """
    path = Path(model)
    if is_engine(path):
        _refuse_options(path, options)
        return path
    cache = cache_dir or default_cache_dir()
    cache.mkdir(parents=True, exist_ok=True)
    source = _local(model)
    engine = cache / _key(source, options, cache)
    with _lock(engine.with_suffix(".lock")):
        if not any(engine.glob("*" + ENGINE_SUFFIX)):
            _make(source, engine, options, say)
    return engine


def is_engine(path: Path) -> bool:
    """Whether a path is an engine file, or a directory that holds or held one."""
    if path.is_file():
        return path.suffix == ENGINE_SUFFIX
    return path.is_dir() and (any(path.glob("*" + ENGINE_SUFFIX)) or _has_engine_config(path))


def _has_engine_config(directory: Path) -> bool:
    """Whether build wrote this directory, so that its missing engine file is an error to tell."""
    try:
        config = json.loads((directory / "config.json").read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and "build_config" in config


def _refuse_options(path: Path, options: EngineOptions) -> None:
    if options.given:
        raise ConfigError(
            "options that shape an engine were given for one that is built",
            where=str(path),
            expected="no " + ", ".join(options.given),
            got=", ".join(f"{name}={value}" for name, value in options.given.items()),
            hint="give the model or checkpoint itself, or leave them out",
        )


def _local(model: Path | str) -> Path:
    from tidemill.api.convert_sources import local_path

    return local_path(model)


def _make(source: Path, engine: Path, options: EngineOptions, say: Say | None) -> None:
    from tidemill.api.build import BuildRequest, build
    from tidemill.api.convert import ConvertRequest, convert

    start = time.perf_counter()
    if say:
        say(f"converting and building {source} once, into {engine}")
    checkpoint = engine.with_name(f".{engine.name}.checkpoint-{os.getpid()}")
    try:
        convert(ConvertRequest(source, checkpoint, dtype=options.dtype))
        limits = {name: value for name, value in options.given.items() if name != "dtype"}
        build(BuildRequest(checkpoint, engine, **limits))
    finally:
        shutil.rmtree(checkpoint, ignore_errors=True)
    if say:
        say(f"built in {time.perf_counter() - start:.1f} s")


def _key(source: Path, options: EngineOptions, cache: Path) -> str:
    from tidemill.api.resolve_build import choose_target

    facts = (_content_hash(source, cache), options, __version__, choose_target(None).name)
    return f"{source.stem}-{hashlib.sha256(repr(facts).encode()).hexdigest()[:16]}"


def _content_hash(source: Path, cache: Path) -> str:
    """Hash the source's files; a file that has not changed since is not read again."""
    files = [source]
    if source.is_dir():
        files = sorted(path for path in source.iterdir() if path.suffix in SOURCE_SUFFIXES)
    known_path = cache / _HASHES_FILE
    known = _read_hashes(known_path)
    digest = hashlib.sha256()
    for file in files:
        stat = file.stat()
        identity = f"{file.resolve()}:{stat.st_dev}:{stat.st_ino}:{stat.st_size}:{stat.st_mtime_ns}"
        if identity not in known:
            known[identity] = _hash_file(file)
        digest.update(f"{file.name}:{known[identity]}\n".encode())
    temporary = known_path.with_name(f".{_HASHES_FILE}.{os.getpid()}")
    temporary.write_text(json.dumps(known))
    temporary.replace(known_path)
    return digest.hexdigest()


def _read_hashes(path: Path) -> dict[str, str]:
    try:
        known = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}  # it only saves time
    return known if isinstance(known, dict) else {}


def _hash_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            digest.update(piece)
    return digest.hexdigest()


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
