"""The demo verb: the whole path on the sample model, from the download to a streamed answer.

Calls the same library functions as the verbs, times each, and asks the real server over HTTP as
any client would. Ends with --once; otherwise serves until Ctrl-C.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from tidemill.base.errors import ServerError
from tidemill.base.python_start import python_arguments
from tidemill.frontends.cli.deploy import deploy
from tidemill.frontends.cli.shell import say

NAME = "smollm2"
QUESTION = "What is gravity?"
# What the model's own chat template makes of the question.
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
PROMPT = (
    f"<|im_start|>system\n{SYSTEM}<|im_end|>\n"
    f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
)
MAX_TOKENS = 96
READY_TIMEOUT_S = 60.0

HELP = """Carry the sample model from download to a streamed answer.

\b
Examples:
  tidemill demo
  tidemill demo --once --work_dir /tmp/demo
"""


def demo(
    work_dir: Annotated[
        Path, typer.Option("--work_dir", help="Where checkpoint, engine and repository go.")
    ] = Path("demo"),
    http_port: Annotated[int, typer.Option("--http_port", min=1, max=65535)] = 8000,
    is_once: Annotated[bool, typer.Option("--once", help="Stop after the answer.")] = False,
) -> None:
    from tidemill.api.build import BuildRequest, build
    from tidemill.api.convert import ConvertRequest, convert
    from tidemill.api.sample import fetch_sample

    _check_port(http_port)
    checkpoint, engine, repository = (work_dir / part for part in ("ckpt", "engine", "models"))
    with _step("sample"):
        model = fetch_sample()
    with _step("convert"):
        convert(ConvertRequest(model, checkpoint, dtype="bfloat16"))
    with _step("build"):
        build(BuildRequest(checkpoint, engine))
    with _step("deploy"):
        deploy(engine_dir=engine, model_repository=repository, name=NAME, link="hard", replace=True)
    with _server(repository, http_port, work_dir / "server.log") as server:
        with _step("serve"):
            _wait_until_ready(http_port, server, work_dir / "server.log")
        say(f"question: {QUESTION}")
        with _step("answer"):
            for piece in _ask(http_port):
                print(piece, end="", flush=True)
            print()
        say(f"try: {_curl_line(http_port)}")
        if not is_once:
            say("serving until Ctrl-C")
            raise _ended(server.wait(), work_dir / "server.log")


@contextmanager
def _step(name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    say(f"{name:8} {time.perf_counter() - start:7.2f} s")


@contextmanager
def _server(repository: Path, http_port: int, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run `tidemill serve` as a process of its own, its output in a file; end it with the body."""
    command = [sys.executable, *python_arguments("tidemill.frontends.cli.main"), "serve"]
    command += ["--model_repository", str(repository)]
    command += ["--http_port", str(http_port)]
    for flag in ("--grpc_port", "--metrics_port"):
        command += [flag, str(_free_port())]
    with log.open("wb") as output:
        server = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        yield server
    finally:
        server.terminate()
        try:
            server.wait(timeout=40)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _check_port(port: int) -> None:
    """Refuse a port that another server has: the demo would ask that one."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise ServerError(
                "the demo's port cannot be opened",
                where=f"127.0.0.1:{port}",
                expected="a free port",
                got=error.strerror or str(error),
                hint="another --http_port, or stop what listens there",
            ) from error


def _ended(code: int, log: Path) -> ServerError:
    return ServerError(
        "the server ended by itself",
        where=str(log),
        expected="a server until Ctrl-C",
        got=f"exit code {code}",
        hint="the log says why; run the demo again",
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_ready(http_port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    """Poll the model's ready endpoint.

    Raises: ServerError when the server ends or is not ready in time.
    """
    deadline = time.monotonic() + READY_TIMEOUT_S
    while server.poll() is None and time.monotonic() < deadline:
        try:
            url = f"http://127.0.0.1:{http_port}/v2/models/{NAME}/ready"
            with urllib.request.urlopen(url, timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    tail = "\n".join(log.read_text("utf-8", errors="replace").splitlines()[-5:])
    raise ServerError(
        "the server did not become ready",
        where=str(log),
        expected=f"model {NAME} ready on port {http_port} within {READY_TIMEOUT_S:.0f} s",
        got=tail or "no output",
        hint="another --http_port, if the port is in use",
    )


def _ask(http_port: int) -> Iterator[str]:
    """Ask through generate_stream; yield the text of each event."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{http_port}/v2/models/{NAME}/generate_stream",
        data=json.dumps({"text_input": PROMPT, "max_tokens": MAX_TOKENS, "stream": True}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as events:
        for line in events:
            if line.startswith(b"data:"):
                event = json.loads(line[len(b"data:") :])
                if "text_output" not in event:
                    raise ServerError(
                        "the answer broke off",
                        where=request.full_url,
                        expected="events with text_output",
                        got=str(event.get("error", event)),
                        hint="run the demo again; server.log in its directory may say more",
                    )
                yield event["text_output"]


def _curl_line(http_port: int) -> str:
    body = json.dumps({"text_input": PROMPT, "max_tokens": MAX_TOKENS, "stream": True})
    url = f"localhost:{http_port}/v2/models/{NAME}/generate_stream"
    return f"curl -N {url} -d '{body}'"
