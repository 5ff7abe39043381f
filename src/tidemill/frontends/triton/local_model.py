"""Models that answer from the request alone: no engine, no host, one response each.

In: requests as Triton hands them over. Out: a list of responses; one request's faults are its own.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

from tidemill.base.errors import ConfigError, TidemillError
from tidemill.frontends.triton.model_parameters import ModelParameters, ModelPlace, resolve_path
from tidemill.frontends.triton.probes import is_probe
from tidemill.frontends.triton.request_inputs import collect_arrays
from tidemill.frontends.triton.stub_api import (
    Array,
    InferenceRequest,
    Response,
    make_error,
    make_response,
)
from tidemill.text.tokenizer import Tokenizer


class LocalModel(ABC):
    """A `TritonPythonModel` around a tokenizer."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the tokenizer.

        Raises: ConfigError when the config names none, CheckpointError when it cannot be read.
        """
        self.parameters = ModelParameters.of_config(json.loads(args["model_config"]))
        place = ModelPlace(Path(args["model_repository"]), args["model_version"])
        self.tokenizer = Tokenizer.from_directory(find_tokenizer_dir(place, self.parameters))

    def execute(self, requests: Sequence[InferenceRequest]) -> list[Response]:
        """Answer every request."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: InferenceRequest) -> Response:
        if is_probe(request):
            return make_response({})
        try:
            return make_response(self.compute(collect_arrays(request)))
        except TidemillError as error:
            return make_error(error)
        except Exception as error:
            # A fault of ours: the client must still get an end, and the stub live on.
            return make_error(RuntimeError(f"internal error: {error!r}"))

    @abstractmethod
    def compute(self, arrays: Mapping[str, Array]) -> Mapping[str, Array]:
        """Turn input tensors into output tensors.

        Raises: InvalidRequestError for values that cannot be served.
        """


def find_tokenizer_dir(place: ModelPlace, parameters: ModelParameters) -> Path:
    """Return the tokenizer's directory: `tokenizer_dir`, or where the model itself lies.

    Raises: ConfigError when there is none, naming the placeholder that was not filled.
    """
    given = parameters.get("tokenizer_dir")
    if given is not None:
        return resolve_path(place, given)
    if (place.version_dir / "tokenizer.json").is_file():
        return place.version_dir
    raise ConfigError(
        "the model has no tokenizer",
        where=str(place.model_dir / "config.pbtxt"),
        expected="parameter tokenizer_dir with a directory that holds tokenizer.json",
        got=", ".join(parameters.unfilled("tokenizer_dir")) or "no tokenizer_dir",
        hint="compat/fill_template.py -i config.pbtxt tokenizer_dir:DIR",
    )
