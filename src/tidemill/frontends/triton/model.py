"""What all models of an engine share: the shell between Triton's stub and the engine's host.

In: requests as Triton hands them over. Out: answers through their senders; `execute` returns at
once, so that batching is the engine's and never Triton's. Starts or joins the host when the model
is loaded and leaves it when it is unloaded. A style adds how requests are read and answered.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tidemill.api.retarget import ensure_native_code
from tidemill.base.errors import ConfigError, InvalidRequestError, TidemillError
from tidemill.frontends.triton.answer import Answer
from tidemill.frontends.triton.attention_windows import check_windows
from tidemill.frontends.triton.inflight import InflightRequests, Observer
from tidemill.frontends.triton.metrics import MetricsPublisher
from tidemill.frontends.triton.model_parameters import (
    ModelParameters,
    ModelPlace,
    find_engine_dir,
    read_session_config,
)
from tidemill.frontends.triton.probes import Probes, is_probe
from tidemill.frontends.triton.request_inputs import collect_arrays
from tidemill.frontends.triton.stub_api import (
    FINAL,
    Array,
    InferenceRequest,
    ResponseSender,
    log_info,
    make_error,
    make_response,
)
from tidemill.frontends.triton.traffic import Traffic
from tidemill.host.client import HostClient
from tidemill.host.config import SessionConfig
from tidemill.host.messages import GenerateRequest, Update
from tidemill.host.runtime_settings import tell_settings

Arrays = Mapping[str, Array]

DECOUPLE = "deploy the model with decoupled_mode:true"
NO_STREAMING = "Streaming is only supported if model is deployed using decoupled mode."
NO_BATCH = (
    "Batch size > 1 requires the tensorrt_llm backend to be using decoupled transaction policy"
)
NO_SEQUENCES = (
    "num_return_sequences > 1 requires the tensorrt_llm backend to be using decoupled "
    "transaction policy"
)
REQUEST_TYPE, WHOLE_REQUEST = "request_type", "context_and_generation"
LOGITS_TYPES = ("TYPE_FP32", "TYPE_FP16")
NO_STOP_ID = "Trying to stop a request but request ID is not provided"


class ServedModel(ABC):
    """A `TritonPythonModel`; the stub calls `initialize`, `execute` and `finalize`."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the engine beside the model's model.py.

        Raises: SessionError when it cannot be loaded; Triton reports the text.
        """
        config = json.loads(args["model_config"])
        policy = config.get("model_transaction_policy", {})
        self.is_decoupled = bool(policy.get("decoupled", False))
        self.has_batch = int(config.get("max_batch_size", 0)) > 0
        self.logits_type = logits_type_of(config)
        self.output_names = frozenset(each["name"] for each in config.get("output", []))
        self.parameters = ModelParameters.of_config(config)
        place = ModelPlace(Path(args["model_repository"]), args["model_version"])
        self.engine_dir, session = self.find_engine(place)
        self._client = self.connect(self.engine_dir, session)
        self._probes = Probes(self._client)
        self._traffic = Traffic()
        self._inflight = InflightRequests(self._client, self._observe)
        labels = (args["model_name"], args["model_version"])
        on_iteration = self._probes.hear_iteration
        self._metrics = MetricsPublisher(self._client, self._traffic, labels, on_iteration)
        self._metrics.start()

    def find_engine(self, place: ModelPlace) -> tuple[Path, SessionConfig]:
        """Return which engine this model serves and how it is run, and log who chose that."""
        session = read_session_config(self.parameters)
        told = tell_settings(session, self.parameters.filled())
        log_info(f"{place.model_dir.name} is run with {told}")
        engine_dir = find_engine_dir(place, self.parameters)
        check_windows(self.parameters, engine_dir)
        return engine_dir, session

    def connect(self, engine_dir: Path, session: SessionConfig) -> HostClient:
        """Reach the host that runs the engine, starting it when there is none."""
        ensure_native_code(engine_dir)
        return HostClient.connect_or_start(engine_dir, session)

    def execute(self, requests: Sequence[InferenceRequest]) -> None:
        """Start every request; each one's faults are its own."""
        for request in requests:
            sender = request.get_response_sender()
            try:
                self._start(request, sender)
            except TidemillError as error:
                sender.send(make_error(error), flags=FINAL)
            except Exception as error:
                # A fault of ours: the client must still get an end, and the stub live on.
                sender.send(make_error(RuntimeError(f"internal error: {error!r}")), flags=FINAL)

    def finalize(self) -> None:
        """End what is in flight and leave the host."""
        self._inflight.close()
        self._probes.close()
        self._metrics.close()
        self._client.close()

    def _observe(self) -> Observer:
        """Return who hears the updates of one engine request: its clock and the probes."""
        clock = self._traffic.begin()

        def hear(update: Update) -> None:
            clock.hear(update)
            if update.error is None:
                self._probes.hear_progress()

        return hear

    def _start(self, request: InferenceRequest, sender: ResponseSender) -> None:
        if is_probe(request):
            self._probes.start(sender)
            return
        refuse_request_type(request.parameters())
        arrays = collect_arrays(request)
        triton_id = request.request_id()
        if is_set(arrays, "stop"):
            if not triton_id:
                raise InvalidRequestError(
                    NO_STOP_ID,
                    where="stop",
                    expected="the request id of the request to stop",
                    got="none",
                    hint="give a request an id when you send it, and send its stop with the same",
                )
            self._inflight.stop(triton_id)
            self.answer_stop(sender)
            return
        self.check_outputs(request.requested_output_names())
        requests, answer = self.read(arrays, sender)
        check_beams(requests, self.parameters.whole_number("max_beam_width"))
        self._inflight.start(triton_id, answer, requests)

    def answer_stop(self, sender: ResponseSender) -> None:
        """Answer a stop request itself: an empty response, as TensorRT-LLM's backend sends."""
        sender.send(make_response({}), flags=FINAL)

    def check_outputs(self, names: Sequence[str]) -> None:  # noqa: B027 (nothing to check is fine)
        """Refuse a request that asks for outputs that cannot come without others."""

    @abstractmethod
    def read(self, arrays: Arrays, sender: ResponseSender) -> tuple[list[GenerateRequest], Answer]:
        """Turn tensors into one engine request for each prompt, and the answer to them.

        Raises: InvalidRequestError for values that cannot be served.
        """

    def check_streaming(self, is_streaming: bool) -> None:
        """Refuse a stream where the deployment gives one response a request.

        Raises: InvalidRequestError in upstream's words, which clients look for.
        """
        if is_streaming and not self.is_decoupled:
            raise InvalidRequestError(
                NO_STREAMING,
                where="streaming",
                expected="false",
                got="true",
                hint=f"ask for the whole answer at once, or {DECOUPLE}",
            )


def check_batch(is_decoupled: bool, num_prompts: int, num_answers: int) -> None:
    """Refuse what needs several responses where the deployment gives one a request.

    Raises: InvalidRequestError, in upstream's words for a batch.
    """
    if is_decoupled or num_answers == 1:
        return
    if num_prompts > 1:
        raise InvalidRequestError(
            NO_BATCH,
            where="the request's prompts",
            expected="1 prompt",
            got=f"{num_prompts} prompts",
            hint=f"send a request for each prompt, or {DECOUPLE}",
        )
    raise InvalidRequestError(
        NO_SEQUENCES,
        where="num_return_sequences",
        expected="1 sequence",
        got=f"{num_answers} sequences",
        hint=f"send a request for each sequence, with another seed, or {DECOUPLE}",
    )


def check_beams(requests: Sequence[GenerateRequest], max_beam_width: int | None) -> None:
    """Refuse searches wider than the deployment allows.

    Raises: InvalidRequestError.
    """
    width = max((each.beams.width for each in requests if each.beams is not None), default=1)
    if max_beam_width is not None and width > max(1, max_beam_width):
        raise InvalidRequestError(
            "the beam search is wider than this deployment allows",
            where="beam_width",
            expected=f"at most {max_beam_width}",
            got=str(width),
            hint="parameter max_beam_width of config.pbtxt",
        )


def refuse_request_type(parameters: str) -> None:
    """Refuse halves of disaggregated serving; `parameters` are the request's, as JSON.

    Raises: InvalidRequestError.
    """
    if REQUEST_TYPE not in parameters:
        return
    kind = json.loads(parameters).get(REQUEST_TYPE, WHOLE_REQUEST)
    if kind != WHOLE_REQUEST:
        raise InvalidRequestError(
            "disaggregated serving does not exist here",
            where=f"request parameter {REQUEST_TYPE}",
            expected=WHOLE_REQUEST,
            got=repr(kind),
            hint=f"leave {REQUEST_TYPE} out: one engine reads the prompt and writes the answer",
        )


def logits_type_of(config: Mapping[str, Any]) -> type[np.floating[Any]]:
    """Return the type in which a config.pbtxt declares logits; upstream's templates leave it open.

    Raises: ConfigError for another than FP32 and FP16.
    """
    declared = {
        tensor["data_type"]
        for tensor in config.get("output", [])
        if tensor["name"] in ("context_logits", "generation_logits")
    }
    if not declared <= set(LOGITS_TYPES):
        raise ConfigError(
            "logits cannot be given in this type",
            where="context_logits, generation_logits in config.pbtxt",
            expected=" or ".join(LOGITS_TYPES),
            got=", ".join(sorted(declared)),
            hint="logits_datatype:TYPE_FP32 for fill_template.py",
        )
    return np.float16 if "TYPE_FP16" in declared else np.float32


def is_set(arrays: Arrays, name: str) -> bool:
    """Say whether a switch was sent and is on; it holds for the whole request."""
    array = arrays.get(name)
    return array is not None and array.size > 0 and bool(array.reshape(-1)[0])
