"""Requests in flight between a fake stub and a fake host: whatever happens, all end once."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.unit.triton.fake_pb_utils import (
    Sender,
    TritonError,
)
from tests.unit.triton.served_models import FakeClient, Load, ask, on, wait_for
from tidemill.base.errors import HostError, QueueFullError
from tidemill.frontends.triton.gathered_answer import DetailWishes
from tidemill.frontends.triton.sequences import AnswerPlace
from tidemill.frontends.triton.text_model import TextAnswer, TextWishes
from tidemill.host.messages import Update


def test_stop_request_cancels_what_runs_under_its_id_and_is_answered_empty(
    load: Load, client: FakeClient
) -> None:
    model = load()
    first, other = ask(model, "Hi", id="7", stream=on()), ask(model, "Ho", id="8", stream=on())
    stop = ask(model, "", id="7", stop=on())
    assert stop.is_complete and stop.responses[0].outputs == {}
    assert client.cancelled == [client.requests[0].request_id]
    client.tell(0, "", [], "cancelled")
    assert first.is_complete and not other.is_complete
    assert first.responses[-1].outputs["finish_reason"][0] == b"cancelled"
    assert ask(model, "", id="unknown", stop=on()).responses[0].error is None


def test_client_that_went_away_is_noticed_and_its_request_cancelled_once(
    load: Load, client: FakeClient
) -> None:
    sender = ask(load(), "a", "b", stream=on())
    sender.cancelled = True
    wait_for(lambda: bool(client.cancelled))
    time.sleep(0.25)
    assert sorted(client.cancelled) == sorted(request.request_id for request in client.requests)


def test_client_that_went_away_is_noticed_though_triton_would_not_say_at_first(
    load: Load, client: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    sender = ask(load(), "a", stream=on())
    answers: Iterator[bool] = iter([False, True])
    asked: list[None] = []

    def is_cancelled() -> bool:
        asked.append(None)
        if len(asked) == 1:
            raise RuntimeError("no shared memory")
        return next(answers)

    monkeypatch.setattr(sender, "is_cancelled", is_cancelled)
    wait_for(lambda: bool(client.cancelled))


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (HostError("it died"), TritonError.UNAVAILABLE),
        (QueueFullError("x"), TritonError.UNAVAILABLE),
    ],
)
def test_error_of_one_row_ends_the_request_and_cancels_the_others(
    load: Load, client: FakeClient, error: HostError | QueueFullError, code: int
) -> None:
    sender = ask(load(), "a", "b", stream=on())
    client.tell(0, "x", [1])
    client.fail(1, error)
    assert sender.error.code == TritonError.UNAVAILABLE and str(error) in str(sender.error)
    assert client.requests[0].request_id in client.cancelled
    client.tell(0, "late", [2], "cancelled")
    assert len(sender.sent) == 2


def test_submission_that_fails_still_ends_the_request(load: Load, client: FakeClient) -> None:
    client.refuses = HostError("the host is gone")
    assert "the host is gone" in str(ask(load(), "a").error)


def test_unloading_ends_what_is_in_flight(load: Load, client: FakeClient) -> None:
    model = load()
    sender = ask(model, "a", stream=on())
    model.finalize()
    assert sender.error.code == TritonError.CANCELLED
    assert client.is_closed


def test_responses_of_one_message_go_out_together_after_its_last_update(
    load: Load, client: FakeClient
) -> None:
    model = load()
    senders = [ask(model, name, stream=on()) for name in ("a", "b")]
    for row in (0, 1):
        client.hear(row, "x", [1])
        client.hear(row, "y", [2], "length")
    assert not any(sender.sent for sender in senders)
    client.after_updates()
    assert all(len(each.sent) == 2 and each.is_complete for each in senders)


def test_response_that_cannot_be_sent_becomes_an_error(
    load: Load, client: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    sender = ask(load(), "a", stream=on())
    first = True
    send_truly = sender.send

    def fail_once(response: Any = None, flags: int = 0) -> None:
        nonlocal first
        if first:
            first = False
            raise RuntimeError("no shared memory")
        send_truly(response, flags)

    monkeypatch.setattr(sender, "send", fail_once)
    client.tell(0, "x", [1])
    assert "no shared memory" in str(sender.error)
    assert client.cancelled


def test_concurrent_updates_end_every_request_once(load: Load, client: FakeClient) -> None:
    model = load()
    senders = [ask(model, "a", "b", stream=on()) for _ in range(17)]

    def finish(row: int) -> None:
        client.tell(row, "x", [1])
        client.tell(row, "", [], "length")

    threads = [threading.Thread(target=finish, args=(row,)) for row in range(34)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(sender.is_complete and len(sender.sent) == 4 for sender in senders)


def test_client_is_never_asked_for_once_the_final_flag_is_on_its_way() -> None:
    class SlowSender(Sender):
        """Takes its time for the final flag, as the stub does."""

        def send(self, response: object = None, flags: int = 0) -> None:
            super().send(response, flags)
            time.sleep(0.05)

    sender = SlowSender()
    wishes = TextWishes(DetailWishes())
    answer = TextAnswer(sender, [AnswerPlace(None, None)], wishes)
    end = Update("r", [1], "a", "length", 4, 1)

    def send() -> None:
        answer.update(0, end)
        answer.flush()

    thread = threading.Thread(target=send)
    thread.start()
    while thread.is_alive():
        answer.is_unwanted()
    assert sender.is_complete and not answer.is_unwanted()
