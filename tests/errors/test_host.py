"""One test for each way that a host cannot be reached, started or understood."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.host.fake_engine import write_tokenizer
from tests.unit.host.test_host_process import FAKE_HOST
from tidemill.base.errors import EngineFormatError, EngineTargetError, HostError
from tidemill.host.client import HostClient
from tidemill.host.connection import Framer, check_hello
from tidemill.host.messages import PROTOCOL_VERSION, Ask, Hello, Message


@pytest.fixture
def engine_dir(tmp_path: Path) -> Path:
    directory = tmp_path / "engine"
    directory.mkdir()
    write_tokenizer(directory)
    return directory


def test_load_error_arrives_as_its_own_class(engine_dir: Path, socket_directory: Path) -> None:
    (engine_dir / "broken").touch()
    with pytest.raises(EngineTargetError) as caught:
        HostClient.connect_or_start(engine_dir, host=FAKE_HOST)
    assert (caught.value.expected, caught.value.got) == ("avx512", "abacus")
    assert list(socket_directory.iterdir()) == []


def test_missing_engine_directory(engine_dir: Path, socket_directory: Path) -> None:
    with pytest.raises(EngineFormatError, match="cannot be read"):
        HostClient.connect_or_start(engine_dir / "nowhere", host=FAKE_HOST)


def test_host_that_dies_while_it_starts(engine_dir: Path, socket_directory: Path) -> None:
    (engine_dir / "silent_death").touch()
    with pytest.raises(HostError, match="died while it started") as caught:
        HostClient.connect_or_start(engine_dir, host=FAKE_HOST)
    assert "last words" in caught.value.got


def test_host_that_does_not_start_in_time(engine_dir: Path, socket_directory: Path) -> None:
    (engine_dir / "slow").touch()
    with pytest.raises(HostError, match="not ready"):
        HostClient.connect_or_start(engine_dir, host=replace(FAKE_HOST, start_timeout_seconds=1.0))


def test_program_that_does_not_exist(engine_dir: Path, socket_directory: Path) -> None:
    with pytest.raises(HostError, match="could not be started"):
        HostClient.connect_or_start(
            engine_dir, host=replace(FAKE_HOST, program=("/nowhere/python",))
        )


def test_directory_that_others_can_read_is_refused(
    engine_dir: Path, socket_directory: Path
) -> None:
    socket_directory.mkdir(mode=0o755)
    socket_directory.chmod(0o755)
    with pytest.raises(HostError, match="not private"):
        HostClient.connect_or_start(engine_dir, host=FAKE_HOST)


@pytest.mark.parametrize("data", [b"\xff\xff\xff\xff", b"\x01\x00\x00\x00\xc1", b"GET / HTTP/1.1"])
def test_foreign_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(HostError, match="no message"):
        Framer().push(data)


@pytest.mark.parametrize("message", [Hello(PROTOCOL_VERSION + 1, "newer"), Ask()])
def test_other_protocol_version_is_refused(message: Message) -> None:
    with pytest.raises(HostError, match="speaks another protocol"):
        check_hello(message)
