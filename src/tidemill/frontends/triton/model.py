"""What both styles of model share: the shell between Triton's stub and the engine's host.

In: requests as Triton hands them over. Out: answers through their senders; `execute` returns at
once, so that batching is the engine's and never Triton's. Starts or joins the host when the model
is loaded and leaves it when it is unloaded. A style adds how requests are read and answered.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

from tidemill.api.retarget import ensure_native_code
from tidemill.base.errors import ConfigError, InvalidRequestError, TidemillError
from tidemill.frontends.triton.answer import Answer
from tidemill.frontends.triton.inflight import InflightRequests, Observer
from tidemill.frontends.triton.metrics import MetricsPublisher
from tidemill.frontends.triton.probes import Probes, is_probe
from tidemill.frontends.triton.request_inputs import collect_arrays
from tidemill.frontends.triton.stub_api import (
    FINAL,
    Array,
    InferenceRequest,
    ResponseSender,
    make_error,
    make_response,
)
from tidemill.frontends.triton.traffic import Traffic
from tidemill.host.client import HostClient
from tidemill.host.config import SessionConfig
from tidemill.host.messages import GenerateRequest, Update
from tidemill.host.runtime_settings import read_fraction, read_runtime_config

Arrays = Mapping[str, Array]

NO_STREAMING = "Streaming is only supported if model is deployed using decoupled mode."
NO_BATCH = (
    "Batch size > 1 requires the tensorrt_llm backend to be using decoupled transaction policy"
)
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
        self.parameters = {
            key: str(value["string_value"])
            for key, value in config.get("parameters", {}).items()
            if value.get("string_value")
        }
        version_dir = Path(args["model_repository"]) / args["model_version"]
        session = read_session_config(self.parameters)
        self._client = self.connect(find_engine_dir(version_dir), session)
        self._probes = Probes(self._client)
        self._traffic = Traffic()
        self._inflight = InflightRequests(self._client, self._observe)
        labels = (args["model_name"], args["model_version"])
        on_iteration = self._probes.hear_iteration
        self._metrics = MetricsPublisher(self._client, self._traffic, labels, on_iteration)
        self._metrics.start()

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
        arrays = collect_arrays(request)
        triton_id = request.request_id()
        if is_set(arrays, "stop"):
            if not triton_id:
                raise InvalidRequestError(NO_STOP_ID)
            self._inflight.stop(triton_id)
            sender.send(make_response({}), flags=FINAL)
            return
        requests, answer = self.read(arrays, sender)
        self._inflight.start(triton_id, answer, requests)

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
            raise InvalidRequestError(NO_STREAMING)


def find_engine_dir(version_dir: Path) -> Path:
    """Return where the engine really lies: deployments that link one engine share its host."""
    engine = version_dir / "rank0.engine"
    return engine.resolve().parent if engine.is_symlink() else version_dir


def read_session_config(parameters: Mapping[str, str]) -> SessionConfig:
    """Return how the engine is run, from the parameters of config.pbtxt.

    Names are TensorRT-LLM's where it has them; those of the runtime's policies are listed in
    `host.runtime_settings`.

    Raises: ConfigError naming a value that cannot be read.
    """
    return SessionConfig(
        kv_cache_tokens=_whole_number(parameters, "max_tokens_in_paged_kv_cache"),
        num_threads=_whole_number(parameters, "num_threads"),
        kv_cache_fraction=read_fraction(parameters, "kv_cache_free_gpu_mem_fraction"),
        runtime=read_runtime_config(parameters),
    )


def _whole_number(parameters: Mapping[str, str], name: str) -> int | None:
    text = parameters.get(name)
    if text is None:
        return None
    if not text.isdecimal():
        raise ConfigError(
            "a parameter of the model's config.pbtxt cannot be read",
            where=name,
            expected="a whole number",
            got=repr(text),
            hint="remove it to have the default",
        )
    return int(text)


def is_set(arrays: Arrays, name: str) -> bool:
    """Say whether a switch was sent and is on; it holds for the whole request."""
    array = arrays.get(name)
    return array is not None and array.size > 0 and bool(array.reshape(-1)[0])
