"""What deployments need of an engine directory's config.json, as types.

In: the directory. Out: `EngineConfig`; what is not said has a value that leaves all open. Reads no
engine file: a repository may be written where the engine cannot be loaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from tidemill.base.errors import ConfigError
from tidemill.base.json_text import parse_json
from tidemill.engine.format import CONFIG_FILE

Count = Annotated[int, Meta(ge=1, le=1 << 24)]


class RuntimeDefaults(Struct, frozen=True):
    """Of the model; windows by layer, repeated."""

    max_attention_window: list[int] | None = None


class PretrainedConfig(Struct, frozen=True):
    """The model."""

    num_hidden_layers: Count = 1
    runtime_defaults: RuntimeDefaults | None = None

    @property
    def windows(self) -> list[int] | None:
        return self.runtime_defaults.max_attention_window if self.runtime_defaults else None


class BuildLimits(Struct, frozen=True):
    """The engine's limits. Units: requests, tokens."""

    max_batch_size: Count = 1
    max_seq_len: Count = 1


class EngineConfig(Struct, frozen=True):
    """An engine directory's config.json."""

    pretrained_config: PretrainedConfig = PretrainedConfig()
    build_config: BuildLimits = BuildLimits()


def read_engine_config(engine_dir: Path) -> EngineConfig:
    """Read the config.json of an engine directory.

    Raises: ConfigError when it cannot be read, or holds other types.
    """
    path = engine_dir / CONFIG_FILE
    try:
        return msgspec.convert(parse_json(path.read_bytes()), EngineConfig)
    except (OSError, ValueError) as error:  # msgspec's error is a ValueError
        raise ConfigError(
            "the engine directory's configuration cannot be read",
            where=str(path),
            expected="the config.json that build wrote",
            got=str(error),
            hint="the directory that `tidemill build --output_dir` wrote",
        ) from error
