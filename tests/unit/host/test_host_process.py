"""Real host processes of a fake engine: sharing, deaths on either side, leaving nothing behind."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tidemill.host.address import HostAddress
from tidemill.host.client import HostClient
from tidemill.host.config import HostConfig, SessionConfig
from tidemill.host.messages import GenerateRequest, StatsSince, Update
from tidemill.runtime.config import RuntimeConfig
from tidemill.runtime.events import EventKind

ROOT = Path(__file__).parents[3]
FAKE_HOST = HostConfig(
    grace_seconds=0.3,
    start_timeout_seconds=20.0,
    program=(sys.executable, "-c", "import runpy, sys; sys.path.insert(0, sys.argv.pop(1)); "
             "runpy.run_module('tests.unit.host.fake_engine', run_name='__main__')", str(ROOT)),
)  # fmt: skip
TIMEOUT_SECONDS = 20.0

Connect = Callable[..., HostClient]


@pytest.fixture
def connect(engine_dir: Path, socket_directory: Path) -> Iterator[Connect]:
    clients: list[HostClient] = []

    def connect(config: SessionConfig | None = None, host: HostConfig = FAKE_HOST) -> HostClient:
        clients.append(HostClient.connect_or_start(engine_dir, config, host))
        return clients[-1]

    yield connect
    for client in clients:
        client.close()


class Inbox:
    """Collects the updates of one request."""

    def __init__(self, client: HostClient, request_id: str, prompt: str, **fields: Any) -> None:
        self.updates: queue.SimpleQueue[Update] = queue.SimpleQueue()
        request = GenerateRequest(request_id=request_id, prompt=prompt, **fields)
        client.submit(request, self.updates.put)

    def next(self) -> Update:
        return self.updates.get(timeout=TIMEOUT_SECONDS)

    def last(self) -> Update:
        while not (update := self.next()).is_final:
            pass
        return update


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not is_so():
        assert time.monotonic() < deadline, "it did not come to be"
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_answer_comes_through_the_host_in_pieces(connect: Connect) -> None:
    inbox = Inbox(connect(), "a", "say>hello", streaming=True)
    updates = [inbox.next() for _ in range(6)]
    texts = [update.text for update in updates]
    assert "".join(texts) == "hello" and texts[0] == "h"
    assert [update.is_first for update in updates] == [True] + [False] * 5


def test_same_request_ids_of_two_frontends_do_not_meet(connect: Connect) -> None:
    first, second = connect(), connect()
    assert first.info().pid == second.info().pid
    inboxes = [Inbox(first, "same", ">one " * 9), Inbox(second, "same", ">two " * 9)]
    assert [inbox.last().text for inbox in inboxes] == ["one ", "two "]


def test_other_settings_are_another_host(connect: Connect) -> None:
    assert (
        connect().info().pid
        != connect(SessionConfig(runtime=RuntimeConfig(max_queue_size=7))).info().pid
    )


def test_statistics_reach_a_client_once_each(connect: Connect) -> None:
    config = RuntimeConfig(event_buffer_max_size=100)
    client = connect(SessionConfig(runtime=config))
    last = Inbox(client, "a", ">hi").last()
    assert last.metrics is not None and last.metrics.first_token_time is not None
    report = client.get_stats(StatsSince())
    assert report.memory_bytes > 0 and not report.requests
    assert [each["iter"] for each in report.iterations_json()] == [1, 2, 3]
    assert report.events[0].kind is EventKind.QUEUED and report.events[-1].detail == "end_id"
    seen = StatsSince(report.iterations[-1].iteration, report.events[-1].number)
    Inbox(client, "b", ">yes").last()
    again = client.get_stats(seen)
    assert [each.iteration for each in again.iterations] == [4, 5, 6, 7]
    assert {event.request_id for event in again.events} == {1}


def test_frontends_that_start_together_share_one_host(connect: Connect) -> None:
    pids: queue.SimpleQueue[int] = queue.SimpleQueue()
    threads = [threading.Thread(target=lambda: pids.put(connect().info().pid)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT_SECONDS)
    assert len({pids.get_nowait() for _ in threads}) == 1


def test_host_leaves_after_its_last_client_and_nothing_stays_behind(
    connect: Connect, socket_directory: Path
) -> None:
    client = connect()
    pid = client.info().pid
    time.sleep(2 * FAKE_HOST.grace_seconds)
    assert is_alive(pid), "a host with a client stays"
    client.close()
    wait_until(lambda: not is_alive(pid))
    assert list(socket_directory.iterdir()) == []


def test_client_that_comes_back_in_time_keeps_the_host(connect: Connect) -> None:
    host = replace(FAKE_HOST, grace_seconds=5.0)
    first = connect(host=host)
    pid = first.info().pid
    first.close()
    assert connect(host=host).info().pid == pid


def test_idle_host_uses_no_cpu(connect: Connect) -> None:
    client = connect()
    assert Inbox(client, "a", ">ok").last().text == "ok"
    stat = Path(f"/proc/{client.info().pid}/stat")

    def cpu_ticks() -> int:
        return sum(map(int, stat.read_text().rpartition(")")[2].split()[11:13]))

    time.sleep(0.5)  # the last step's time may be booked late
    before = cpu_ticks()
    time.sleep(1.0)
    assert cpu_ticks() - before <= 1


def test_frontend_that_dies_takes_its_requests_with_it(connect: Connect, engine_dir: Path) -> None:
    client = connect()
    script = f"""
import sys, time
sys.path.insert(0, {str(ROOT)!r})
from tests.unit.host.test_host_process import FAKE_HOST, Inbox, HostClient
client = HostClient.connect_or_start({str(engine_dir)!r}, None, FAKE_HOST)
inbox = Inbox(client, "endless", "x", max_tokens=4000, streaming=True)
inbox.next()
print("running", flush=True)
time.sleep(60)
"""
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True
    ) as frontend:
        assert frontend.stdout is not None and frontend.stdout.readline() == "running\n"
        assert client.info().stats.used_blocks > 0
        frontend.kill()
    wait_until(lambda: client.info().stats.used_blocks == 0)
    assert Inbox(client, "a", ">still here").last().text == "still here"


def test_killed_host_ends_what_was_in_flight_and_serves_again(connect: Connect) -> None:
    client = connect()
    inboxes = [Inbox(client, str(number), "x", max_tokens=4000) for number in range(6)]
    pid = client.info().pid
    os.kill(pid, signal.SIGKILL)
    for inbox in inboxes:
        error = inbox.last().error
        assert error is not None and error.kind == "HostError"
        assert "the engine host died" in str(error.to_exception())
    assert Inbox(client, "later", ">again").last().text == "again"
    assert client.info().pid != pid


def test_request_that_kills_the_host_is_not_tried_again(connect: Connect) -> None:
    client = connect()
    error = Inbox(client, "poison", "!die").last().error
    assert error is not None and error.kind == "HostError"
    assert Inbox(client, "later", ">fine").last().text == "fine"


def test_engine_that_breaks_in_a_step_is_told_and_restarted(connect: Connect) -> None:
    client = connect()
    pid = client.info().pid
    error = Inbox(client, "breaker", "!break").last().error
    assert error is not None and "a wire came loose" in str(error.to_exception())
    assert Inbox(client, "later", ">fine").last().text == "fine"
    assert client.info().pid != pid


def test_asked_to_stop_host_leaves_its_socket_to_nobody(
    connect: Connect, socket_directory: Path
) -> None:
    client = connect()
    pid = client.info().pid
    client.close()
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not is_alive(pid))
    assert not list(socket_directory.glob("*.sock"))


def test_cancel_through_the_host_ends_the_request(connect: Connect) -> None:
    client = connect()
    inbox = Inbox(client, "a", "x", max_tokens=4000, streaming=True)
    inbox.next()
    client.cancel("a")
    client.cancel("never seen")
    assert inbox.last().finish_reason == "cancelled"
    wait_until(lambda: client.info().stats.used_blocks == 0)


def test_closed_client_ends_its_requests(connect: Connect) -> None:
    client = connect()
    inbox = Inbox(client, "a", "x", max_tokens=4000)
    client.close()
    error = inbox.last().error
    assert error is not None and error.kind == "CancelledError"
    late = Inbox(client, "b", "x").last().error
    assert late is not None and late.kind == "CancelledError"


def test_callback_that_raises_stops_its_request_and_no_other(
    connect: Connect, capfd: pytest.CaptureFixture[str]
) -> None:
    client = connect()

    def fail(update: Update) -> None:
        raise ValueError("not today")

    client.submit(
        GenerateRequest(request_id="bad", prompt="x", max_tokens=4000, streaming=True), fail
    )
    assert Inbox(client, "good", ">fine").last().text == "fine"
    wait_until(lambda: client.info().stats.used_blocks == 0)
    assert "not today" in capfd.readouterr().err


def test_values_that_no_wire_can_carry_fail_their_request(connect: Connect) -> None:
    client = connect()
    for fields in ({"prompt": "\ud83d"}, {"prompt": "x", "seed": 2**70}):
        error = Inbox(client, "odd", **fields).last().error
        assert error is not None and error.kind == "InvalidRequestError"


def test_engine_under_a_link_is_the_same_engine(
    engine_dir: Path, socket_directory: Path, tmp_path: Path
) -> None:
    deployed = tmp_path / "repository"
    deployed.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (deployed / name).symlink_to(engine_dir / name)
    (deployed / "model.py").touch()
    of = [HostAddress.of(path, SessionConfig(), FAKE_HOST) for path in (engine_dir, deployed)]
    assert of[0] == of[1]
    (engine_dir / "tokenizer.json").touch()
    assert HostAddress.of(engine_dir, SessionConfig(), FAKE_HOST) != of[0]
