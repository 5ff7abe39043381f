"""What Triton costs: the engine alone against the same engine behind tritonserver, in one run.

Throughput at 32 concurrent streams, then the time to the first token at concurrency 1, each four
ways: the session in this process, through the host's client, through tritonserver, and through the
front door before it. The tokens of one prompt are compared first. Prints one JSON line for each.

    python bench/triton_overhead.py --engine_dir ENGINE [--streams 32] [--tokens 64]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import tritonclient.grpc.aio as grpc_aio
from aiohttp import ClientSession, TCPConnector

from bench.parts.sample_engine import build_sample
from tidemill.frontends.triton.client import stream_generate
from tidemill.frontends.triton.deploy import DeployRequest, deploy
from tidemill.frontends.triton.door_config import DoorConfig
from tidemill.frontends.triton.endpoints import choose_endpoints
from tidemill.frontends.triton.front_door import DoorAddress, FrontDoor
from tidemill.frontends.triton.serve_request import ServeRequest
from tidemill.frontends.triton.server import TritonServer
from tidemill.host.client import HostClient
from tidemill.host.messages import GenerateRequest, Update
from tidemill.host.session import Session

MODEL = "bench"
PROMPT = "The tide turns twice a day, and so does the mill that stands in the estuary"
NUM_FIRST_TOKENS = 20


@dataclass(frozen=True)
class Load:
    """How many streams at once, and how long each."""

    num_streams: int
    num_tokens: int

    @property
    def total_tokens(self) -> int:
        return self.num_streams * self.num_tokens


def request_for(index: int, load: Load) -> GenerateRequest:
    return GenerateRequest(
        request_id=f"{index}-{time.monotonic_ns()}",
        prompt=f"{PROMPT} {index}",
        max_tokens=load.num_tokens,
        end_id=-1,
        streaming=True,
    )


def payload_for(index: int, load: Load) -> dict[str, object]:
    return {
        "text_input": f"{PROMPT} {index}",
        "max_tokens": load.num_tokens,
        "end_id": -1,
        "stream": True,
    }


def run_session(session: Session, load: Load) -> int:
    """Run all streams in this process; return their tokens."""
    for index in range(load.num_streams):
        session.submit(request_for(index, load))
    tokens = 0
    while session.has_work:
        tokens += sum(len(update.token_ids) for update in session.step())
    return tokens


def run_client(client: HostClient, load: Load) -> int:
    """Run all streams through the host; return their tokens."""
    done = threading.Semaphore(0)
    counts = [0]

    def hear(update: Update) -> None:
        counts[0] += len(update.token_ids)
        if update.is_final:
            done.release()

    for index in range(load.num_streams):
        client.submit(request_for(index, load), hear)
    for _ in range(load.num_streams):
        done.acquire()
    return counts[0]


def run_http(url: str, load: Load) -> int:
    """Run all streams as server-sent events; return their tokens."""

    async def one(session: ClientSession, index: int) -> int:
        tokens = 0
        path = f"{url}/v2/models/{MODEL}/generate_stream"
        async with session.post(path, json=payload_for(index, load)) as answer:
            assert answer.status == 200, await answer.text()
            async for line in answer.content:
                if line.startswith(b"data:"):
                    tokens += json.loads(line[5:])["num_output_tokens"]
        return tokens

    async def all_of_them() -> int:
        async with ClientSession(connector=TCPConnector(limit=0)) as session:
            return sum(await asyncio.gather(*(one(session, i) for i in range(load.num_streams))))

    return asyncio.run(all_of_them())


def run_grpc(address: str, load: Load) -> int:
    """Run all streams over one gRPC stream, as load generators do; return their tokens."""

    async def requests() -> object:
        for index in range(load.num_streams):
            yield {
                "model_name": MODEL,
                "inputs": _grpc_inputs(index, load),
                "request_id": str(index),
            }
        await finished.wait()

    async def all_of_them() -> int:
        tokens, open_streams = 0, load.num_streams
        async with grpc_aio.InferenceServerClient(address) as client:
            async for answer, error in client.stream_infer(requests()):
                assert error is None, error
                tokens += int(answer.as_numpy("num_output_tokens").item())
                if answer.as_numpy("finish_reason") is not None:
                    open_streams -= 1
                    if open_streams == 0:
                        finished.set()
        return tokens

    finished = asyncio.Event()
    return asyncio.run(all_of_them())


def _grpc_inputs(index: int, load: Load) -> list[object]:
    values = {
        "text_input": ("BYTES", np.array([[f"{PROMPT} {index}".encode()]], dtype=np.object_)),
        "max_tokens": ("INT32", np.array([[load.num_tokens]], dtype=np.int32)),
        "end_id": ("INT32", np.array([[-1]], dtype=np.int32)),
        "stream": ("BOOL", np.array([[True]])),
    }
    inputs = []
    for name, (datatype, array) in values.items():
        tensor = grpc_aio.InferInput(name, list(array.shape), datatype)
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    return inputs


def first_token_ms(first: Callable[[], float]) -> list[float]:
    """Time requests to their first token, one after another, each run to its end."""
    times = []
    for _ in range(NUM_FIRST_TOKENS + 2):
        start = time.perf_counter()
        times.append((first() - start) * 1e3)
        time.sleep(0.02)
    return times[2:]


def first_of_client(client: HostClient, load: Load) -> float:
    """Return when the first token came."""
    times: list[float] = []
    done = threading.Event()

    def hear(update: Update) -> None:
        times.append(time.perf_counter())
        if update.is_final:
            done.set()

    client.submit(request_for(0, load), hear)
    done.wait()
    return times[0]


def first_of_stream(url: str, load: Load) -> float:
    """Return when the first token came."""
    times = [time.perf_counter() for _ in stream_generate(url, MODEL, payload_for(0, load))]
    return times[0]


@contextmanager
def serving(engine_dir: Path) -> Iterator[tuple[TritonServer, str]]:
    """Serve the engine, and give the server and the front door's URL."""
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        repository = Path(directory) / "models"
        deploy(DeployRequest(engine_dir, repository, MODEL, link="symbolic"))
        server = stack.enter_context(TritonServer(ServeRequest(repository, 0, 0, 0)))
        port = choose_endpoints("127.0.0.1", {"--http-port": 0}).flag_to_port["--http-port"]
        upstream = server.endpoints.http_url
        address = DoorAddress("127.0.0.1", port)
        stack.enter_context(FrontDoor(address, upstream, DoorConfig(), lambda: True, 5.0))
        yield server, f"http://127.0.0.1:{port}"


def report(what: str, way: str, **figures: object) -> None:
    line = {"bench": "triton_overhead", "what": what, "way": way, **figures}
    print(json.dumps({**line, "cpus": os.cpu_count(), "machine": platform.machine()}), flush=True)


def measure_throughput(ways: dict[str, Callable[[Load], int]], load: Load, rounds: int) -> None:
    """Take turns, so that what disturbs the machine disturbs all ways alike."""
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for way, run in ways.items():
        assert run(Load(2, 4)) == 8, way
    for _ in range(rounds):
        for way, run in ways.items():
            start = time.perf_counter()
            assert run(load) == load.total_tokens, way
            seconds[way].append(time.perf_counter() - start)
    best = {way: load.total_tokens / statistics.median(times) for way, times in seconds.items()}
    for way, rate in best.items():
        share = rate / best["session"]
        report(
            f"{load.num_streams} streams of {load.num_tokens} tokens",
            way,
            tokens_per_s=round(rate, 1),
            share=round(share, 3),
        )


def measure_first_token(ways: dict[str, Callable[[], float]]) -> None:
    """Report medians, and what each way adds to the host's own."""
    medians = {}
    for way, first in ways.items():
        times = sorted(first_token_ms(first))
        medians[way] = statistics.median(times)
        added = medians[way] - medians["host"]
        report(
            "first token",
            way,
            median_ms=round(medians[way], 2),
            p90_ms=round(times[int(0.9 * len(times))], 2),
            added_ms=round(added, 2),
        )


def main() -> None:
    """Serve, compare, time, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine_dir", type=Path, help="default: the sample, built anew")
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    flags = parser.parse_args()
    load, short = Load(flags.streams, flags.tokens), Load(1, 4)
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(TemporaryDirectory()))
        engine_dir = flags.engine_dir or build_sample(scratch)
        server, door = stack.enter_context(serving(engine_dir))
        client = stack.enter_context(HostClient.connect_or_start(engine_dir))
        session = Session.open(engine_dir)
        stack.callback(session.close)
        url, address = server.endpoints.http_url, server.endpoints.grpc_url
        measure_throughput(
            {
                "session": lambda load: run_session(session, load),
                "host": lambda load: run_client(client, load),
                "triton http": lambda load: run_http(url, load),
                "triton grpc": lambda load: run_grpc(address, load),
                "front door": lambda load: run_http(door, load),
            },
            load,
            flags.rounds,
        )
        measure_first_token(
            {
                "host": lambda: first_of_client(client, short),
                "triton http": lambda: first_of_stream(url, short),
                "front door": lambda: first_of_stream(door, short),
            }
        )


if __name__ == "__main__":
    main()
