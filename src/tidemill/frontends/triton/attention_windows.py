"""Parameters max_attention_window_size and sink_token_length against the engine that is served.

Windows are the model's and compiled in (decision 065), so these parameters can only say what the
engine has: anything else would change answers, and is refused instead of ignored.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tidemill.base.errors import ConfigError
from tidemill.frontends.triton.engine_config import read_engine_config
from tidemill.frontends.triton.model_parameters import ModelParameters

WINDOWS, SINKS = "max_attention_window_size", "sink_token_length"


def check_windows(parameters: ModelParameters, engine_dir: Path) -> None:
    """Accept windows that are the engine's; sizes from max_seq_len on mean that all is seen.

    Raises: ConfigError naming what is asked for and what the engine has.
    """
    asked, sinks = parameters.get(WINDOWS), parameters.get(SINKS)
    if asked is None and sinks is None:
        return
    config = read_engine_config(engine_dir)
    length = config.build_config.max_seq_len
    num_layers, own = config.pretrained_config.num_hidden_layers, config.pretrained_config.windows
    if sinks is not None and sinks != "0":
        raise _refusal(SINKS, "0: there are no sink tokens", sinks)
    if asked is not None and _by_layer(_read(asked), num_layers, length) != _by_layer(
        own or [length], num_layers, length
    ):
        told = f"{own} positions" if own else f"all positions seen (max_seq_len {length})"
        raise _refusal(WINDOWS, f"what the engine has, {told}", asked)


def _read(text: str) -> list[int]:
    parts = [part.strip() for part in text.replace(";", ",").split(",")]
    if not all(part.isdecimal() and int(part) for part in parts):
        raise _refusal(WINDOWS, "numbers from 1, one for all layers or a list", text)
    return [int(part) for part in parts]


def _by_layer(sizes: list[int], num_layers: int, length: int) -> list[int]:
    """Repeat a list over the layers, as TensorRT-LLM does."""
    return [min(length, sizes[index % len(sizes)]) for index in range(num_layers)]


def _refusal(name: str, expected: str, got: Any) -> ConfigError:
    return ConfigError(
        "this engine cannot have another attention window",
        where=name,
        expected=expected,
        got=str(got),
        hint="remove it; or set runtime_defaults.max_attention_window in the checkpoint's "
        "config.json and build again",
    )
