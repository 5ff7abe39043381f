"""The model for a repository that brings no model.py: Triton backends `tidemill`, `tensorrtllm`.

In: the configuration that Triton hands over. Out: the one of our models whose tensors it has. It
decides once, when the model is loaded, and passes everything on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tidemill.base.errors import ConfigError
from tidemill.frontends.triton.bls_model import BlsModel
from tidemill.frontends.triton.known_models import Outline, find_module
from tidemill.frontends.triton.llmapi_model import LlmapiModel
from tidemill.frontends.triton.local_model import LocalModel
from tidemill.frontends.triton.model import ServedModel
from tidemill.frontends.triton.postprocessing_model import PostprocessingModel
from tidemill.frontends.triton.preprocessing_model import PreprocessingModel
from tidemill.frontends.triton.stub_api import InferenceRequest, Response
from tidemill.frontends.triton.tensorrt_llm_model import TensorrtLlmModel
from tidemill.frontends.triton.text_model import TextModel
from tidemill.frontends.triton.tokens_model import TokensModel

Model = ServedModel | LocalModel
MODULE_TO_MODEL: dict[str, type[Model]] = {
    "preprocessing_model": PreprocessingModel,
    "postprocessing_model": PostprocessingModel,
    "tensorrt_llm_model": TensorrtLlmModel,
    "tokens_model": TokensModel,
    "llmapi_model": LlmapiModel,
    "bls_model": BlsModel,
    "text_model": TextModel,
}


class TritonPythonModel:
    """Whatever its config.pbtxt declares."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Choose the model and load it.

        Raises: ConfigError when the tensors are those of no model.
        """
        self._model = choose_model(json.loads(args["model_config"]))()
        self._model.initialize(args)

    def execute(self, requests: Sequence[InferenceRequest]) -> list[Response] | None:
        return self._model.execute(requests)

    def finalize(self) -> None:
        if isinstance(self._model, ServedModel):
            self._model.finalize()


def choose_model(config: Mapping[str, Any]) -> type[Model]:
    """Return the model whose tensors a configuration declares.

    Raises: ConfigError when there is none.
    """
    outline = Outline(
        name=str(config.get("name", "")),
        inputs={tensor["name"] for tensor in config.get("input", [])},
        outputs={tensor["name"] for tensor in config.get("output", [])},
        has_batch=int(config.get("max_batch_size", 0)) > 0,
        parameters=set(config.get("parameters", {})),
    )
    module = find_module(outline)
    if module is not None:
        return MODULE_TO_MODEL[module]
    raise ConfigError(
        "a config.pbtxt declares the tensors of no model that is known here",
        where=outline.name,
        expected="QUERY, TOKENS_BATCH, input_ids or text_input among the inputs",
        got=", ".join(sorted(outline.inputs)) or "no input",
        hint="tidemill deploy writes configurations that work",
    )
