"""What `tidemill serve` does when a process behind it is killed, with the real server.

Times are bounded generously here; docs/LOG.md has what was measured on a quiet machine.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.triton.event_stream import stream_generate
from tests.triton.serve_process import ServeProcess, serving, wait_for
from tests.triton.spelled_repository import (
    STREAMING,
    UNARY,
    deploy_spelled,
    write_spelled_engine,
)
from tidemill.base.errors import ServerError
from tidemill.frontends.triton.process_tree import is_alive
from tidemill.frontends.triton.shared_memory import SHM_DIR

BACK_WITHIN_S = 20.0


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeProcess]:
    directory = tmp_path_factory.mktemp("watched")
    deploy_spelled(write_spelled_engine(directory / "engine"), directory / "models")
    with serving(directory / "models", "--probe_period", "1") as serve:
        yield serve


def stream_for_ever(serve: ServeProcess) -> tuple[threading.Thread, list[object]]:
    """Start a stream that has no end of its own; what it got is in the list, at last its error."""
    got: list[object] = []

    def read() -> None:
        payload = {"text_input": "no end", "max_tokens": 1000, "stream": True}
        try:
            got.extend(stream_generate(serve.http_url, STREAMING, payload))
        except ServerError as error:
            got.append(error)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    return thread, got


def answers(serve: ServeProcess, model: str) -> bool:
    status, answer = serve.ask(model, ">ok")
    assert status != 200 or (isinstance(answer, dict) and answer["text_output"] == "ok"), answer
    return status == 200


VICTIMS: dict[str, Callable[[ServeProcess], int]] = {
    "host": lambda serve: serve.host_ids[0],
    "stub": lambda serve: serve.stub_id(STREAMING),
    "server": lambda serve: serve.server_id,
}


@pytest.mark.slow  # each restarts a real server, and some wait for one
@pytest.mark.parametrize("victim", VICTIMS)
def test_killed_process_is_replaced_and_requests_in_flight_end_with_an_error(
    serve: ServeProcess, victim: str
) -> None:
    thread, got = stream_for_ever(serve)
    wait_for(lambda: len(serve.host_ids) == 1, "the host")
    time.sleep(0.3)
    process_id = VICTIMS[victim](serve)
    os.kill(process_id, signal.SIGKILL)
    wait_for(lambda: not is_alive(process_id), "the end of the victim")
    wait_for(lambda: answers(serve, STREAMING), "service", BACK_WITHIN_S)
    assert answers(serve, UNARY)
    thread.join(timeout=BACK_WITHIN_S)
    assert not thread.is_alive() and isinstance(got[-1], ServerError), got


@pytest.mark.slow  # waits for a probe to run out of patience, and restarts a real server
def test_host_that_hangs_is_ended_and_replaced(tmp_path: Path) -> None:
    deploy_spelled(write_spelled_engine(tmp_path / "engine"), tmp_path / "models")
    flags = ("--probe_period", "0.5", "--probe_timeout", "2")
    with serving(tmp_path / "models", *flags) as serve:
        assert answers(serve, UNARY)
        (host,) = serve.host_ids
        os.kill(host, signal.SIGSTOP)
        serve.wait_for_line("no sign of life")
        wait_for(lambda: answers(serve, UNARY), "service", BACK_WITHIN_S)
        assert not is_alive(host)


@pytest.mark.slow  # starts and stops a real server
def test_stop_lets_a_request_finish_and_leaves_nothing(tmp_path: Path) -> None:
    deploy_spelled(write_spelled_engine(tmp_path / "engine"), tmp_path / "models")
    with serving(tmp_path / "models") as serve:
        thread, got = stream_for_ever(serve)
        wait_for(lambda: bool(serve.host_ids), "the host")
        time.sleep(0.5)
        hosts = serve.host_ids
        assert serve.stop() == 0, serve.lines
        thread.join(timeout=5)
        assert len(got) >= 1000 and not isinstance(got[-1], ServerError), got[-1:]
        assert not list(SHM_DIR.glob(f"tidemill_{serve.process.pid}_*"))
        wait_for(lambda: not any(map(is_alive, hosts)), "the host's leave", 20.0)


@pytest.mark.slow  # starts and stops a real server
def test_stop_cuts_a_request_that_takes_too_long_and_the_server_ends_in_order(
    tmp_path: Path,
) -> None:
    deploy_spelled(write_spelled_engine(tmp_path / "engine"), tmp_path / "models")
    with serving(tmp_path / "models", "--exit_timeout", "1") as serve:
        thread, got = stream_for_ever(serve)
        wait_for(lambda: len(got) > 10, "the stream's beginning")
        assert serve.stop() == 0, serve.lines
        thread.join(timeout=5)
        assert isinstance(got[-1], ServerError), got[-1:]
        assert not any("Signal (11)" in line for line in serve.lines), serve.lines
        assert not list(SHM_DIR.glob(f"tidemill_{serve.process.pid}_*"))


@pytest.mark.slow  # restarts a real server as often as the watchdog allows
def test_server_that_dies_again_and_again_ends_serve(tmp_path: Path) -> None:
    deploy_spelled(write_spelled_engine(tmp_path / "engine"), tmp_path / "models")
    with serving(tmp_path / "models", "--max_restarts", "1") as serve:
        os.kill(serve.server_id, signal.SIGKILL)
        serve.wait_for_line("ready again")
        os.kill(serve.server_id, signal.SIGKILL)
        assert serve.process.wait(timeout=30) == 128 + signal.SIGKILL
        serve.wait_for_line("giving up", 5)
