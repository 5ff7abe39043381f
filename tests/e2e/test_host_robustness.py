"""A host with a real engine: killed under load, idle, and what it leaves on the machine."""

from __future__ import annotations

import os
import queue
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import MakeTinyLlama
from tests.tiny_llama import TinyLlama
from tidemill.api.build import BuildRequest, build
from tidemill.api.convert import ConvertRequest, convert
from tidemill.host.client import HostClient
from tidemill.host.config import HostConfig
from tidemill.host.messages import GenerateRequest, Update

TIMEOUT_S = 30.0
HOST = HostConfig(grace_seconds=0.3)


@pytest.fixture(scope="module")
def engine_dir(make_tiny_llama: MakeTinyLlama, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("robust")
    convert(ConvertRequest(make_tiny_llama(TinyLlama(head_size=16)), directory / "checkpoint"))
    build(BuildRequest(directory / "checkpoint", directory / "engine", max_seq_len=512))
    return directory / "engine"


@pytest.fixture
def client(engine_dir: Path, socket_directory: Path) -> Iterator[HostClient]:
    with HostClient.connect_or_start(engine_dir, None, HOST) as client:
        yield client


def ask(client: HostClient, name: str, max_tokens: int) -> queue.SimpleQueue[Update]:
    updates: queue.SimpleQueue[Update] = queue.SimpleQueue()
    request = GenerateRequest(
        request_id=name, prompt_tokens=[7, 8, 9], max_tokens=max_tokens, end_id=-1
    )
    client.submit(request, updates.put)
    return updates


def cpu_ticks(pid: int) -> int:
    stat = Path(f"/proc/{pid}/stat").read_text()
    return sum(map(int, stat.rpartition(")")[2].split()[11:13]))


def test_host_killed_under_load_tells_all_and_answers_the_same_again(client: HostClient) -> None:
    before = ask(client, "before", 24).get(timeout=TIMEOUT_S)
    running = [ask(client, f"running {number}", 500) for number in range(8)]
    pid = client.info().pid
    os.kill(pid, signal.SIGKILL)
    for updates in running:
        update = updates.get(timeout=TIMEOUT_S)
        # A step may have ended between the kill and the last word: then it is a whole answer.
        if update.error is not None:
            assert "the engine host died" in str(update.error.to_exception())
    after = ask(client, "after", 24).get(timeout=TIMEOUT_S)
    assert after.token_ids == before.token_ids and len(after.token_ids) == 24
    assert client.info().pid != pid


def test_idle_host_of_a_real_engine_uses_no_cpu(client: HostClient) -> None:
    assert ask(client, "once", 24).get(timeout=TIMEOUT_S).error is None
    pid = client.info().pid
    time.sleep(0.5)  # the workers' last spins, booked late
    before = cpu_ticks(pid)
    time.sleep(2.0)
    assert cpu_ticks(pid) - before <= 1, "in units of 10 ms, over 2 s"


def test_host_leaves_no_socket_and_no_shared_memory(
    client: HostClient, socket_directory: Path
) -> None:
    shared = set(os.listdir("/dev/shm"))
    pid = client.info().pid
    assert ask(client, "once", 24).get(timeout=TIMEOUT_S).error is None
    client.close()
    deadline = time.monotonic() + TIMEOUT_S
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline, "the host is still there"
        time.sleep(0.02)
    assert list(socket_directory.iterdir()) == []
    # Other tests run servers meanwhile, whose regions have the servers' own numbers.
    of_servers = re.compile(rf"tidemill_(?!{pid}_)\d+_")
    new = {name for name in os.listdir("/dev/shm") if "tidemill" in name} - shared
    assert [name for name in new if not of_servers.match(name)] == []
