"""Frames arrive in any pieces; errors keep their class and parts."""

from __future__ import annotations

import random

import pytest

from tidemill.base.errors import EngineTargetError, HostError, InvalidRequestError
from tidemill.host.connection import Framer, encode
from tidemill.host.messages import (
    NAME_TO_ERROR,
    PROTOCOL_VERSION,
    Ask,
    GenerateRequest,
    Hello,
    Message,
    Tell,
    Update,
    WireError,
)

MESSAGES: list[Message] = [
    Hello(PROTOCOL_VERSION, "somebody"),
    Ask([GenerateRequest(request_id="a", prompt="\u4f60\u597d" * 50, stop=["x"], seed=2**64 - 1)]),
    Ask(cancelled_ids=["a", "b"], wants_info=True),
    Ask(),
    Tell([Update("a", [1, 2], "text", None, 3, 2), Update.failed("b", HostError("broken"))]),
]


@pytest.mark.parametrize("seed", range(20))
def test_frames_cut_anywhere_are_the_same_messages(seed: int) -> None:
    chance = random.Random(seed)
    data = b"".join(map(encode, MESSAGES))
    framer = Framer()
    received: list[Message] = []
    while data:
        length = chance.choice([1, 2, 3, 4, 5, 64, 1000])
        received += framer.push(data[:length])
        data = data[length:]
    assert received == MESSAGES


def test_errors_come_out_as_the_class_they_were_with_all_parts() -> None:
    error = EngineTargetError("what", where="where", expected="this", got="that", hint="try")
    again = WireError.from_exception(error).to_exception()
    assert type(again) is EngineTargetError and str(again) == str(error)
    assert NAME_TO_ERROR["InvalidRequestError"] is InvalidRequestError
