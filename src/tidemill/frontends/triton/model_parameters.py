"""What a model's config.pbtxt says beside its tensors: where the engine lies and how it is run.

In: the model's parameters, under TensorRT-LLM's names. Out: the engine directory and the session's
settings. An empty value and an unfilled `${...}` of a template mean unset; where a value is
needed, the error names the placeholder.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tidemill.base.errors import ConfigError
from tidemill.engine.format import ENGINE_FILE
from tidemill.frontends.triton.repository import ORIGIN_LINK
from tidemill.host.config import SessionConfig
from tidemill.host.runtime_settings import read_session_settings

ENGINE_PARAMETERS = ("gpt_model_path", "engine_dir")
QUEUE_BOUND = "max_queue_size"
PLACEHOLDER = re.compile(r"\$\{\w+\}")
BATCHING_TYPES = ("v1", "inflight_batching", "inflight_fused_batching")
# The words of TensorRT-LLM's backend.
WRONG_TYPE = "Invalid gpt_model_type. Must be v1/inflight_batching/inflight_fused_batching."
UNSERVED = ("encoder_model_path", "lora_prefetch_dir")
DECODING_MODES = ("top_k", "top_p", "top_k_top_p", "beam_search", "auto")


@dataclass(frozen=True)
class ModelPlace:
    """Where a model lies in its repository."""

    model_dir: Path
    version: str

    @property
    def version_dir(self) -> Path:
        return self.model_dir / self.version


class ModelParameters:
    """The parameters of one model; `get` returns None for what is unset."""

    def __init__(self, name_to_text: Mapping[str, str]) -> None:
        self._name_to_text = name_to_text

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> ModelParameters:
        """Take the parameters out of the configuration that Triton hands to a model.

        The bound of Triton's own queue is the engine's too, as in TensorRT-LLM's backend: requests
        leave Triton's queue at once.
        """
        policy = config.get("dynamic_batching", {}).get("default_queue_policy", {})
        bound = int(policy.get("max_queue_size", 0))
        rows = config.get("parameters", {}).items()
        texts = {name: str(value.get("string_value", "")) for name, value in rows}
        return cls({QUEUE_BOUND: str(bound), **texts} if bound else texts)

    def get(self, name: str) -> str | None:
        text = self._name_to_text.get(name, "").strip()
        return None if not text or PLACEHOLDER.fullmatch(text) else text

    def filled(self) -> dict[str, str]:
        """Return all parameters that are set."""
        texts = {name: self.get(name) for name in self._name_to_text}
        return {name: text for name, text in texts.items() if text is not None}

    def with_value(self, name: str, text: str) -> ModelParameters:
        """Return these parameters with another value of one."""
        return ModelParameters({**self._name_to_text, name: text})

    def is_on(self, name: str, default: bool = False) -> bool:
        """Return a switch; as upstream, what is no clear answer leaves the default."""
        text = (self.get(name) or "").lower()
        if text in ("true", "yes", "1", "t"):
            return True
        return False if text in ("false", "no", "0", "f") else default

    def whole_number(self, name: str) -> int | None:
        """Return a number.

        Raises: ConfigError naming a value that is not a whole number.
        """
        text = self.get(name)
        if text is None:
            return None
        if not text.isdecimal():
            raise self._fault(name, "a whole number", "remove it to have the default")
        return int(text)

    def choice(self, name: str, choices: tuple[str, ...], what: str = "") -> str | None:
        """Return one of several words, in lower case.

        Raises: ConfigError naming a value that is none of them.
        """
        text = self.get(name)
        if text is not None and text.lower() not in choices:
            raise self._fault(name, " or ".join(choices), "one of these, or none", what)
        return None if text is None else text.lower()

    def unfilled(self, *names: str) -> list[str]:
        """Say which of these parameters still have a template's placeholder."""
        texts = {name: self._name_to_text.get(name, "").strip() for name in names}
        return [f"{name}: {text}" for name, text in texts.items() if PLACEHOLDER.fullmatch(text)]

    def _fault(self, name: str, expected: str, hint: str, what: str = "") -> ConfigError:
        return ConfigError(
            what or "a parameter of the model's config.pbtxt cannot be read",
            where=name,
            expected=expected,
            got=repr(self.get(name)),
            hint=hint,
        )


def find_engine_dir(place: ModelPlace, parameters: ModelParameters) -> Path:
    """Return where the engine lies: beside the model, or where its parameters say.

    Deployments that link one engine share its host. A relative path counts from the repository.

    Raises: ConfigError when there is none, naming the placeholder that was not filled.
    """
    for name in ENGINE_PARAMETERS:
        given = parameters.get(name)
        if given is not None:
            return resolve_path(place, given)
    engine = place.version_dir / ENGINE_FILE
    if engine.is_symlink():
        return engine.resolve().parent
    if engine.exists():
        return place.version_dir
    unfilled = parameters.unfilled(*ENGINE_PARAMETERS)
    raise ConfigError(
        "the model has no engine",
        where=str(place.model_dir / "config.pbtxt"),
        expected=f"parameter gpt_model_path with an engine directory, or {engine}",
        got="unfilled " + ", ".join(unfilled) if unfilled else "neither",
        hint="compat/fill_template.py -i config.pbtxt engine_dir:ENGINE",
    )


def resolve_path(place: ModelPlace, text: str) -> Path:
    """Return a path of a parameter; relative ones count from the repository as it was written."""
    repository = place.model_dir.parent
    origin = repository.parent / ORIGIN_LINK
    return (origin.resolve() if origin.is_symlink() else repository) / text


def read_session_config(parameters: ModelParameters) -> SessionConfig:
    """Return how the engine is run, from the parameters of config.pbtxt.

    Names are TensorRT-LLM's where it has them; those of the runtime's policies are listed in
    `host.runtime_settings`. `num_threads` and `pin_threads` are ours.

    Raises: ConfigError naming a value that cannot be accepted.
    """
    parameters.choice("gpt_model_type", BATCHING_TYPES, WRONG_TYPE)
    parameters.choice("decoding_mode", DECODING_MODES)
    asked = {name: text for name, text in parameters.filled().items() if name in UNSERVED}
    if asked:
        raise ConfigError(
            "a model's parameters ask for what this version cannot do yet",
            where=", ".join(asked),
            expected="no value",
            got=", ".join(map(repr, asked.values())),
            hint="leave them empty, or their placeholders unfilled",
        )
    return read_session_settings(parameters.filled())
