"""The launcher's parts, without a server: environment, ports, output, shared memory."""

from __future__ import annotations

import io
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tidemill.base.errors import ServerError
from tidemill.frontends.triton.endpoints import choose_endpoints
from tidemill.frontends.triton.installation import (
    Installation,
    find_installation,
    find_libpython_dir,
    server_environment,
    stage_backends,
)
from tidemill.frontends.triton.serve_request import PORT_FLAGS
from tidemill.frontends.triton.server_output import ServerOutput
from tidemill.frontends.triton.shared_memory import remove_leftovers, unique_prefix


def test_this_interpreter_comes_first_on_path_and_its_library_first_of_libraries() -> None:
    environment = server_environment(
        find_installation(), {"PATH": "/usr/bin", "LD_LIBRARY_PATH": "/opt/lib"}
    )
    assert environment["PATH"].split(":") == [str(Path(sys.prefix) / "bin"), "/usr/bin"]
    libraries = environment["LD_LIBRARY_PATH"].split(":")
    assert libraries[0] == str(find_libpython_dir())
    assert libraries[1].endswith("nvidia_pytriton.libs")
    assert libraries[2] == "/opt/lib"


def test_staged_backend_has_the_stub_of_this_python(tmp_path: Path) -> None:
    backends = stage_backends(find_installation(), tmp_path / "backends")
    assert backends is not None
    stub = (backends / "python" / "triton_python_backend_stub").resolve()
    assert stub.parent.name == f"{sys.version_info.major}.{sys.version_info.minor}"
    assert os.access(stub, os.X_OK)


def test_server_on_path_keeps_its_own_backends_and_libraries(tmp_path: Path) -> None:
    installation = Installation(tmp_path / "tritonserver")
    assert stage_backends(installation, tmp_path / "backends") is None
    assert server_environment(installation, {})["PATH"] == str(Path(sys.prefix) / "bin")
    assert "LD_LIBRARY_PATH" not in server_environment(installation, {})


def test_port_zero_picks_different_free_ports() -> None:
    ports = choose_endpoints("127.0.0.1", {"--http-port": 0, "--grpc-port": 0}).flag_to_port
    assert len(set(ports.values())) == 2
    for port in ports.values():
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", port))


def test_ipv6_is_written_as_each_part_of_tritonserver_reads_it() -> None:
    endpoints = choose_endpoints("::", dict.fromkeys(PORT_FLAGS, 0), "127.0.0.1")
    assert endpoints.server_flags[:3] == [
        "--http-address=127.0.0.1",
        "--grpc-address=[::]",
        "--metrics-address=ipv6:::",
    ]
    ports = endpoints.flag_to_port
    assert endpoints.grpc_url == f"[::1]:{ports['--grpc-port']}"
    assert endpoints.http_url == f"http://127.0.0.1:{ports['--http-port']}"
    assert choose_endpoints("::1", {}).server_flags[0] == "--http-address=ipv6:::1"


def test_a_name_becomes_the_address_that_tritonserver_needs() -> None:
    assert choose_endpoints("localhost", {}).server_flags[0] == "--http-address=127.0.0.1"


def test_ipv4_address_written_as_one_of_ipv6_is_ipv4() -> None:
    assert choose_endpoints("::ffff:127.0.0.1", {}).server_flags[0] == "--http-address=127.0.0.1"


@pytest.mark.parametrize("host", ["", "[::1]", "no such host", "\u00e9" * 70, "fe80::1%lo"])
def test_a_host_without_an_address_is_refused(host: str) -> None:
    with pytest.raises(
        ServerError, match=r"(?s)no such address to listen on.*try: 127\.0\.0\.1 or"
    ):
        choose_endpoints(host, {"--http-port": 0})


def test_information_and_tables_stay_quiet_and_faults_are_passed_on() -> None:
    log = (
        'I1123 14:26:28.2 1 x.cc:1] "information"\n'
        'W1123 14:26:26.8 1 x.cc:1] "CUDA driver version is insufficient for CUDA runtime"\n'
        "+-------+\n| Model |\n\n"
        'E1123 14:26:28.2 1 x.cc:1] "failed to load"\n'
        "printed by a model\n"
    )
    passed: list[str] = []
    output = ServerOutput(io.StringIO(log), passed.append, is_verbose=False)
    output.join(timeout_s=5)
    assert [line.split()[-1] for line in passed] == ['load"', "model"]
    assert output.faults() == "\n".join(passed)


def test_flag_that_the_server_does_not_know_is_not_lost_in_its_help() -> None:
    unknown, last = "tritonserver: unrecognized option '--x'", "Invalid option value. Got y"
    text = f"{unknown}\nUsage: tritonserver [options]\nMemory/Device:\n  --help\n\tPrint\n{last}\n"
    passed: list[str] = []
    output = ServerOutput(io.StringIO(text), passed.append, is_verbose=True)
    output.join(timeout_s=5)
    assert passed == [unknown, last] == output.faults().splitlines()


def test_leftovers_of_dead_launchers_go_and_those_of_live_ones_stay(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    dead = tmp_path / f"tidemill_{ended.pid}_0123abcd_region"
    live, foreign = tmp_path / f"{unique_prefix()}region", tmp_path / "tidemill_of_others"
    for path in (dead, live, foreign):
        path.touch()
    assert remove_leftovers(shm_dir=tmp_path) == [dead]
    assert sorted(tmp_path.iterdir()) == sorted([live, foreign])


def test_own_prefix_is_removed_though_its_launcher_lives(tmp_path: Path) -> None:
    prefix, other = unique_prefix(), unique_prefix()
    for each in (prefix, other):
        (tmp_path / f"{each}region").touch()
    remove_leftovers(prefix, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [f"{other}region"]
