"""What no client of ours says: a real host answers with an error and goes on for all others."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.host.test_host_process import FAKE_HOST, Inbox, wait_until
from tidemill.host.address import HostAddress
from tidemill.host.client import HostClient
from tidemill.host.config import SessionConfig
from tidemill.host.connection import MAX_FRAME_BYTES, Framer, encode
from tidemill.host.messages import (
    PROTOCOL_VERSION,
    Ask,
    GenerateRequest,
    Hello,
    Message,
    Starting,
    Tell,
)

HELLO = encode(Hello(PROTOCOL_VERSION, "a stranger"))
OVERSIZED = struct.pack("<I", MAX_FRAME_BYTES + 1)
TIMEOUT_S = 20.0


@pytest.fixture
def client(engine_dir: Path, socket_directory: Path) -> Iterator[HostClient]:
    with HostClient.connect_or_start(engine_dir, None, FAKE_HOST) as client:
        yield client


def dial(engine_dir: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(TIMEOUT_S)
    connection.connect(str(HostAddress.of(engine_dir, SessionConfig(), FAKE_HOST).socket_path))
    return connection


def read_to_the_end(connection: socket.socket) -> list[Message]:
    framer = Framer()
    messages: list[Message] = []
    try:
        while data := connection.recv(1 << 16):
            messages += framer.push(data)
    except ConnectionResetError:
        pass  # what we sent was not all read
    return messages


def num_open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        (encode(Hello(PROTOCOL_VERSION + 1, "newer")), "speaks another protocol"),
        (encode(Hello(0, "older")), "got: version 0"),
        (encode(Ask()), "speaks another protocol"),
        (HELLO + encode(Starting("loading")), "speaks another protocol"),
        (HELLO + encode(Tell()), "speaks another protocol"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "is no message"),
        (HELLO + struct.pack("<I", 4) + b"\xc1\xc1\xc1\xc1", "is no message"),
        (HELLO + struct.pack("<I", 5) + b"\x93\x01\xa1xx", "is no message"),
        (HELLO + OVERSIZED, f"a frame of {MAX_FRAME_BYTES + 1} bytes"),
        (OVERSIZED, f"a frame of {MAX_FRAME_BYTES + 1} bytes"),
    ],
)
def test_foreign_message_is_answered_and_closes_its_connection_alone(
    client: HostClient, engine_dir: Path, said: bytes, answer: str
) -> None:
    pid, before = client.info().pid, num_open_files(client.info().pid)
    inbox = Inbox(client, "endless", "x", max_tokens=4000, streaming=True)
    inbox.next()
    with dial(engine_dir) as stranger:
        stranger.sendall(said)
        last = read_to_the_end(stranger)[-1]
    assert isinstance(last, Tell) and last.error is not None
    assert answer in str(last.error.to_exception())
    assert inbox.next().error is None, "the other client's request goes on"
    assert Inbox(client, "next", ">fine").last().text == "fine"
    assert client.info().pid == pid
    wait_until(lambda: num_open_files(pid) == before)


def test_requests_of_a_client_that_goes_astray_are_freed(
    client: HostClient, engine_dir: Path
) -> None:
    request = GenerateRequest(request_id="lost", prompt="x", max_tokens=4000)
    with dial(engine_dir) as stranger:
        stranger.sendall(HELLO + encode(Ask([request])))
        wait_until(lambda: client.info().stats.used_blocks > 0)
        stranger.sendall(OVERSIZED)
        wait_until(lambda: client.info().stats.used_blocks == 0)


@pytest.mark.parametrize("num_bytes", [0, 1, 3, 4, 5, len(HELLO) - 1])
def test_client_that_hangs_up_in_the_middle_of_a_message_is_forgotten(
    client: HostClient, engine_dir: Path, num_bytes: int
) -> None:
    pid, before = client.info().pid, num_open_files(client.info().pid)
    with dial(engine_dir) as stranger:
        stranger.sendall(HELLO[:num_bytes])
    wait_until(lambda: num_open_files(pid) == before)
    assert Inbox(client, "next", ">fine").last().text == "fine"


def test_message_in_single_bytes_is_understood(client: HostClient, engine_dir: Path) -> None:
    with dial(engine_dir) as patient:
        for byte in HELLO + encode(Ask(wants_info=True)):
            patient.sendall(bytes([byte]))
        framer = Framer()
        messages: list[Message] = []
        while len(messages) < 2:
            messages += framer.push(patient.recv(1 << 16))
    assert isinstance(messages[1], Tell) and messages[1].info is not None


def test_killed_host_leaves_nothing_once_its_successor_has_left(
    client: HostClient, socket_directory: Path
) -> None:
    first = client.info().pid
    os.kill(first, 9)
    wait_until(lambda: Inbox(client, "again", ">back").last().text == "back")
    second = client.info().pid
    assert second != first
    client.close()
    wait_until(lambda: list(socket_directory.iterdir()) == [])
