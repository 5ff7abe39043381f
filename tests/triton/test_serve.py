"""`tidemill serve` as a process: ready, stopped by a signal, nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tritonclient.grpc import InferenceServerClient

from tests.triton.http_calls import call
from tests.triton.spelled_repository import UNARY, deploy_spelled, write_spelled_engine
from tidemill.frontends.triton.endpoints import choose_endpoints
from tidemill.frontends.triton.shared_memory import SHM_DIR

PORT_FLAGS = ("--http-port", "--grpc-port", "--metrics-port")
IPV6, V4 = Path("/proc/net/if_inet6"), "a machine without IPv6"


def children_of(process_id: int) -> list[int]:
    tasks = Path(f"/proc/{process_id}/task/{process_id}/children")
    return [int(child) for child in tasks.read_text().split()]


def is_running(process_id: int) -> bool:
    return Path(f"/proc/{process_id}").exists()


@pytest.mark.parametrize(
    ("number", "host"),
    [
        (signal.SIGINT, "127.0.0.1"),
        pytest.param(signal.SIGTERM, "::1", marks=pytest.mark.skipif(not IPV6.exists(), reason=V4)),
    ],
)
def test_signal_ends_the_server_in_order_and_leaves_nothing(
    tmp_path: Path, number: signal.Signals, host: str
) -> None:
    repository = tmp_path / "models"
    deploy_spelled(write_spelled_engine(tmp_path / "engine"), repository)
    ports = choose_endpoints(host, dict.fromkeys(PORT_FLAGS, 0)).flag_to_port
    flags = [part for flag, port in ports.items() for part in (flag, str(port))]
    command = [sys.executable, "-m", "tidemill", "serve", "--model_repository", str(repository)]
    command += ["--host", host]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        [*command, *flags], env=environment, stderr=subprocess.PIPE, text=True
    ) as serve:
        assert serve.stderr is not None
        lines = []
        for line in serve.stderr:
            lines.append(line)
            if "metrics http" in line:
                break
        (server,) = children_of(serve.pid)
        assert "libssl" not in Path(f"/proc/{serve.pid}/maps").read_text()
        http, grpc, metrics = (line.split()[1] for line in lines[-3:])
        url = f"{http}/v2/models/{UNARY}/generate"
        assert call(url, {"text_input": ">ok", "max_tokens": 4})[0] == 200
        assert call(metrics)[0] == 200
        with InferenceServerClient(grpc) as client:
            assert client.is_model_ready(UNARY)
        serve.send_signal(number)
        rest = serve.stderr.read()
        assert serve.wait(timeout=30) == 0, rest
    assert any("ready after" in line for line in lines)
    assert not list(SHM_DIR.glob(f"tidemill_{serve.pid}_*"))
    deadline = time.monotonic() + 5
    while is_running(server) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_running(server)
