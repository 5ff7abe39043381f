"""Models between a fake stub and a fake host: what tests of them share.

In: a model's class and config, prompts. Out: the sender that its answers reach; the test tells the
host's updates. The fixtures `client` and `load` are in conftest.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from tests.unit.triton.fake_pb_utils import Array, InferenceRequest, Sender, text_array
from tidemill.base.errors import HostError, QueueFullError
from tidemill.frontends.triton.model import ServedModel
from tidemill.host.messages import GenerateRequest, HostInfo, Update

TIMEOUT_S = 5.0

Load = Callable[..., ServedModel]


class FakeClient:
    """Keeps requests and lets the test tell their updates."""

    def __init__(self) -> None:
        self.requests: list[GenerateRequest] = []
        self.listeners: list[Callable[[Update], None]] = []
        self.cancelled: list[str] = []
        self.is_closed = False
        self.refuses: Exception | None = None
        self.after_updates: Callable[[], None] = lambda: None

    def call_after_updates(self, callback: Callable[[], None]) -> None:
        self.after_updates = callback

    def submit(self, request: GenerateRequest, on_update: Callable[[Update], None]) -> None:
        if self.refuses is not None:
            raise self.refuses
        self.requests.append(request)
        self.listeners.append(on_update)

    def cancel(self, request_id: str) -> None:
        self.cancelled.append(request_id)

    def close(self) -> None:
        self.is_closed = True

    def info(self, timeout_seconds: float = 10.0) -> HostInfo:
        raise HostError("the engine host is away")

    def tell(self, row: int, text: str, tokens: list[int], finish: str | None = None) -> None:
        self.hear(row, text, tokens, finish)
        self.after_updates()

    def hear(self, row: int, text: str, tokens: list[int], finish: str | None = None) -> None:
        """Tell as one of a message's updates that others follow."""
        request_id = self.requests[row].request_id
        self.listeners[row](Update(request_id, tokens, text, finish, 4, len(tokens)))

    def fail(self, row: int, error: HostError | QueueFullError) -> None:
        self.listeners[row](Update.failed(self.requests[row].request_id, error))


def ask(model: ServedModel, *prompts: str, id: str = "", **extra: Array) -> Sender:
    arrays = {"text_input": text_array(*prompts), "max_tokens": np.array([[9]]), **extra}
    return send(model, InferenceRequest(arrays, id))


def send(model: ServedModel, request: InferenceRequest) -> Sender:
    model.execute([request])
    return request.sender


def on() -> Array:
    return np.array([[True]])


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
