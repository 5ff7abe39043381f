"""The classic `tensorrt_llm_bls` model: text in and out over the engine of its tensorrt_llm model.

Upstream's calls the other models one after another, one request at a time. This one asks the
engine's host itself, under the same settings and so the same host; its requests run side by side,
a stop by id reaches them, and its text is that of every other model. Names and checks are
upstream's; `accumulate_tokens` makes a stream's texts cumulative.
"""

from __future__ import annotations

from pathlib import Path

from tidemill.base.errors import ConfigError, InvalidRequestError
from tidemill.frontends.triton.answer import Answer
from tidemill.frontends.triton.model import Arrays
from tidemill.frontends.triton.model_parameters import (
    ModelParameters,
    ModelPlace,
    find_engine_dir,
    read_session_config,
)
from tidemill.frontends.triton.repository import CONFIG_NAME
from tidemill.frontends.triton.stub_api import ResponseSender
from tidemill.frontends.triton.text_model import TextModel
from tidemill.host.config import SessionConfig
from tidemill.host.messages import GenerateRequest

ENGINE_MODEL = "tensorrt_llm"
NO_TEXT = "text_input is required"
NO_MAX_TOKENS = "max_tokens must be a single value > 0"


class BlsModel(TextModel):
    """Serves prompts as text, on the engine of another model of the repository."""

    counts_tokens = False

    def find_engine(self, place: ModelPlace) -> tuple[Path, SessionConfig]:
        # What it would echo by default, the tensorrt_llm model decides.
        name = self.parameters.get("tensorrt_llm_model_name") or ENGINE_MODEL
        model_dir = place.model_dir.parent / name
        own_accumulates = self.parameters.is_on("accumulate_tokens")
        sibling = ModelPlace(model_dir, latest_version(model_dir))
        parameters = read_parameters(model_dir / CONFIG_NAME)
        self.parameters = parameters.with_value("accumulate_tokens", str(own_accumulates))
        return find_engine_dir(sibling, parameters), read_session_config(parameters)

    def read(self, arrays: Arrays, sender: ResponseSender) -> tuple[list[GenerateRequest], Answer]:
        if arrays["text_input"].size == 0:
            raise InvalidRequestError(
                NO_TEXT,
                where="text_input",
                expected="a prompt",
                got="none",
                hint="send the prompt as text; tokens are taken by the tensorrt_llm model",
            )
        max_tokens = arrays["max_tokens"]
        if max_tokens.size == 0 or min(max_tokens.reshape(-1).tolist()) <= 0:
            raise InvalidRequestError(
                NO_MAX_TOKENS,
                where="max_tokens",
                expected="at least 1",
                got=str(max_tokens.tolist()),
                hint="say how many tokens the answer may have at most",
            )
        return super().read(arrays, sender)


def latest_version(model_dir: Path) -> str:
    """Return a model's highest version.

    Raises: ConfigError when there is none.
    """
    found = model_dir.iterdir() if model_dir.is_dir() else ()
    versions = [int(path.name) for path in found if path.is_dir() and path.name.isdecimal()]
    if not versions:
        raise ConfigError(
            "the model that a BLS model calls is not there",
            where=str(model_dir),
            expected="a model with a version, as tensorrt_llm_model_name says",
            got="none",
            hint="tensorrt_llm_model_name in the BLS model's config.pbtxt",
        )
    return str(max(versions))


def read_parameters(path: Path) -> ModelParameters:
    """Return the parameters of another model's config.pbtxt."""
    from google.protobuf import json_format

    from tidemill.frontends.triton.user_config import read_user_config

    config = json_format.MessageToDict(read_user_config(path), preserving_proto_field_name=True)
    return ModelParameters.of_config(config)
