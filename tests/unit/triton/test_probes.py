"""The watchdog's probes on both sides: what a model answers, and what a verdict is made of."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.unit.triton.fake_pb_utils import InferenceRequest, Sender
from tidemill.base.errors import HostError, QueueFullError, TidemillError
from tidemill.frontends.triton import watchdog_probe
from tidemill.frontends.triton.probe_mark import PROBE_MARK
from tidemill.frontends.triton.probes import Probes, is_probe
from tidemill.frontends.triton.process_tree import children_of, is_alive, stubs_of
from tidemill.frontends.triton.watchdog_probe import (
    Health,
    ProbeRound,
    Verdict,
    is_ours,
    probe_body,
)
from tidemill.host.messages import GenerateRequest, Update


class FakeClient:
    """Keeps the one request and its listener."""

    def __init__(self) -> None:
        self.requests: list[GenerateRequest] = []
        self.listener: Callable[[Update], None] = print
        self.cancelled: list[str] = []

    def submit(self, request: GenerateRequest, on_update: Callable[[Update], None]) -> None:
        self.requests.append(request)
        self.listener = on_update

    def cancel(self, request_id: str) -> None:
        self.cancelled.append(request_id)

    def tell(self, error: TidemillError | None = None) -> None:
        name = self.requests[0].request_id
        done = Update(name, [3], "", "length", 1, 1)
        self.listener(done if error is None else Update.failed(name, error))


@pytest.fixture
def client() -> FakeClient:
    return FakeClient()


@pytest.fixture
def sender() -> Sender:
    return Sender()


def test_probe_asks_for_one_token_and_answers_when_it_has_come(
    client: FakeClient, sender: Sender
) -> None:
    Probes(client).start(sender)
    (request,) = client.requests
    assert (request.max_tokens, request.prompt_tokens, request.streaming) == (1, [0], False)
    assert not sender.sent
    client.tell()
    assert sender.is_complete and sender.responses[-1].error is None


def test_token_of_another_request_proves_as_much_and_withdraws_the_probe(
    client: FakeClient, sender: Sender
) -> None:
    probes = Probes(client)
    probes.start(sender)
    probes.hear_progress()
    assert sender.is_complete and client.cancelled == [client.requests[0].request_id]
    client.tell()
    assert len(sender.sent) == 1


def test_step_counter_must_advance_after_the_probe_began(
    client: FakeClient, sender: Sender
) -> None:
    probes = Probes(client)
    probes.start(sender)
    probes.hear_iteration(7)
    probes.hear_iteration(7)
    assert not sender.sent
    probes.hear_iteration(8)
    assert sender.is_complete and sender.responses[-1].error is None


def test_full_queue_is_a_sign_of_life_and_a_dead_host_is_not(client: FakeClient) -> None:
    full, dead = Sender(), Sender()
    probes = Probes(client)
    probes.start(full)
    client.tell(QueueFullError("Maximum queue size of 1 has been reached"))
    assert full.responses[-1].error is None
    client.requests.clear()
    probes.start(dead)
    client.tell(HostError("the engine host died"))
    assert "died" in str(dead.error)


def test_probe_ends_when_the_model_is_unloaded(client: FakeClient, sender: Sender) -> None:
    probes = Probes(client)
    probes.start(sender)
    probes.close()
    assert "unloaded" in str(sender.error)


def test_only_marked_requests_are_probes() -> None:
    arrays = {"max_tokens": np.array([[1]])}
    assert is_probe(InferenceRequest(arrays, parameters=json.dumps({PROBE_MARK: True})))
    assert not is_probe(InferenceRequest(arrays, parameters='{"priority": 1}'))


def test_probe_body_has_every_required_input_and_no_other() -> None:
    config = {
        "input": [
            {"name": "text", "data_type": "TYPE_STRING", "dims": ["1"]},
            {"name": "flag", "data_type": "TYPE_BOOL", "dims": [1]},
            {"name": "ids", "data_type": "TYPE_INT32", "dims": [-1]},
            {"name": "pair", "data_type": "TYPE_FP32", "dims": [2, -1]},
            {"name": "seed", "data_type": "TYPE_UINT64", "dims": [1], "optional": True},
        ]
    }
    expected = {PROBE_MARK: True, "text": "", "flag": False, "ids": 1, "pair": [1.0, 1.0]}
    assert probe_body(config) == expected


def test_models_of_others_are_never_probed(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "a.py", tmp_path / "b.py"
    ours.write_text("from tidemill.frontends.triton.text_model import TextModel")
    theirs.write_text("import triton_python_backend_utils")
    assert is_ours(ours) and not is_ours(theirs) and not is_ours(tmp_path / "none.py")


def test_process_that_is_not_there_is_neither_alive_nor_a_parent() -> None:
    absent = 2**22 + 1
    assert not is_alive(absent) and not children_of(absent) and not stubs_of(absent)
    assert is_alive(1)


def test_probe_that_fails_in_itself_is_a_verdict_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(address: str) -> Verdict:
        raise ValueError("not JSON")

    monkeypatch.setattr(watchdog_probe, "ask_server", fail)
    probes = ProbeRound("127.0.0.1:1", [], 1.0)
    deadline = time.monotonic() + 5
    while probes.verdict is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert probes.verdict is not None and probes.verdict.health is Health.SICK
