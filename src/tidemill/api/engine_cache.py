"""Finds the engine of whatever a user names, converting and building it once where needed.

In: an engine directory, or anything that convert reads, and options. Out: an engine directory. What
is built goes into the cache under a hash of the source's content, the options, this version and
the target; it appears there complete or not at all, and whoever wants the same at the same time
waits for the first. After each build, the least recently used go until the cache is within its
bound. Knows nothing of how engines are used.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from tidemill.base.cache_dir import cache_dir
from tidemill.base.errors import ConfigError
from tidemill.base.version import __version__
from tidemill.engine.format import FORMAT_VERSION
from tidemill.engine.kept_engines import (
    Say,
    hold,
    hold_if_kept,
    remove_leftovers,
    remove_oldest,
    sole_maker,
)

ENGINE_SUFFIX = ".engine"
# Of a directory, what convert reads; other files in it change nothing.
SOURCE_SUFFIXES = (".safetensors", ".gguf", ".json", ".jinja", ".model")
MAX_CACHE_BYTES = 64 * 10**9
_HASHES_FILE = "hashes.json"
_MAX_HASHES = 4096
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
    quant: str | None = None
    quant_head: str | None = None
    kv_cache_dtype: str | None = None

    @property
    def given(self) -> dict[str, Any]:
        """The options that were not left open."""
        default = asdict(EngineOptions())
        return {name: value for name, value in asdict(self).items() if value != default[name]}


@dataclass(frozen=True)
class EngineCache:
    """Where built engines are kept, and how many bytes of them."""

    directory: Path
    max_bytes: int = MAX_CACHE_BYTES

    @classmethod
    def of_user(cls, directory: Path | str | None, max_bytes: int | None) -> EngineCache:
        """Return the cache of a user's wishes; None leaves the choice to us."""
        place = cache_dir("engines") if directory is None else Path(directory)
        return cls(place, MAX_CACHE_BYTES if max_bytes is None else max_bytes)


@dataclass(frozen=True)
class FoundEngine:
    """An engine directory; one that a cache keeps is not removed before `release`."""

    path: Path
    held: IO[str] | None

    def release(self) -> None:
        if self.held is not None:
            self.held.close()


def find_or_build(
    model: Path | str, options: EngineOptions, cache: EngineCache, say: Say | None = None
) -> FoundEngine:
    """Find the engine of a model, building it if it is not in the cache.

    `say` is told one line when a build begins, one when it is done, and one for each engine that
    had to go. Raises: ConfigError for options that a built engine cannot follow; what convert and
    build raise.
    """
    path = Path(model)
    if is_engine(path):
        _refuse_options(path, options)
        return FoundEngine(path, hold_if_kept(path))
    cache.directory.mkdir(parents=True, exist_ok=True)
    source = _local(model)
    engine = cache.directory / _key(source, options, cache.directory)
    with sole_maker(engine):
        if not any(engine.glob("*" + ENGINE_SUFFIX)):
            _make(source, engine, options, say)
        found = FoundEngine(engine, hold(engine))
    remove_oldest(cache.directory, cache.max_bytes, say)
    return found


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
    remove_leftovers(engine)
    checkpoint = engine.with_name(f".{engine.name}.checkpoint")
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

    content, target = _content_hash(source, cache), choose_target(None).name
    facts = (content, options, __version__, FORMAT_VERSION, target)
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
    temporary.write_text(json.dumps(dict(list(known.items())[-_MAX_HASHES:])))
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
