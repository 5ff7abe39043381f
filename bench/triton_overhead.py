"""What Triton costs: the engine alone against the same engine behind tritonserver, in one run.

Throughput at 32 concurrent streams, then the time to the first token at concurrency 1, each four
ways: the session in this process, through the host's client, through tritonserver, and through the
front door before it. The tokens of one prompt are compared first. Prints one JSON line for each.

    scripts/bench triton_overhead [--engine_dir ENGINE] [--streams 32] [--tokens 64]
"""

from __future__ import annotations

import os
import statistics
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from tritonclient.grpc import service_pb2

from bench.parts.command_line import parser_of
from bench.parts.figures import print_line
from bench.parts.sample_engine import build_sample
from bench.parts.triton_streams import first_event_s, grpc_streams, http_streams
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
    events = http_streams(url, MODEL, [payload_for(i, load) for i in range(load.num_streams)])
    return sum(event["num_output_tokens"] for event in events)


def run_grpc(address: str, load: Load) -> int:
    """Run all streams over one gRPC stream, as load generators do; return their tokens."""
    requests = [grpc_request(index, load) for index in range(load.num_streams)]
    answers = grpc_streams(address, requests)
    return sum(int.from_bytes(each["num_output_tokens"], "little") for each in answers)


def grpc_request(index: int, load: Load) -> bytes:
    """Return a request of the KServe protocol, serialised."""
    request = service_pb2.ModelInferRequest(model_name=MODEL, id=str(index))
    text = f"{PROMPT} {index}".encode()
    for name, datatype, value in (
        ("text_input", "BYTES", struct.pack("<I", len(text)) + text),
        ("max_tokens", "INT32", struct.pack("<i", load.num_tokens)),
        ("end_id", "INT32", struct.pack("<i", -1)),
        ("stream", "BOOL", b"\1"),
    ):
        request.inputs.add(name=name, datatype=datatype, shape=[1, 1])
        request.raw_input_contents.append(value)
    serialised: bytes = request.SerializeToString()
    return serialised


def first_of_client(client: HostClient, load: Load) -> float:
    """Return the seconds to the first token of a request that runs to its end."""
    times: list[float] = []
    done = threading.Event()

    def hear(update: Update) -> None:
        times.append(time.perf_counter())
        if update.is_final:
            done.set()

    start = time.perf_counter()
    client.submit(request_for(0, load), hear)
    done.wait()
    return times[0] - start


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
    print_line("triton_overhead", what=what, way=way, cpus=os.cpu_count(), **figures)


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


def measure_first_token(ways: dict[str, Callable[[Load], float]], num_tokens: int) -> None:
    """Take turns; report medians, and what each way adds to the host's own."""
    load = Load(1, num_tokens)
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(NUM_FIRST_TOKENS + 2):
        for way, first in ways.items():
            times[way].append(first(load) * 1e3)
            time.sleep(0.02)
    medians = {way: statistics.median(each[2:]) for way, each in times.items()}
    for way, each in times.items():
        report(
            f"first token of {num_tokens}",
            way,
            median_ms=round(medians[way], 2),
            p90_ms=round(sorted(each[2:])[int(0.9 * NUM_FIRST_TOKENS)], 2),
            added_ms=round(medians[way] - medians["host"], 2),
        )


def main() -> None:
    """Serve, compare, time, print."""
    parser = parser_of(__doc__)
    parser.add_argument("--engine_dir", type=Path, help="default: the sample, built anew")
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    flags = parser.parse_args()
    load = Load(flags.streams, flags.tokens)
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
        for num_tokens in (1, 4):
            measure_first_token(
                {
                    "host": lambda load: first_of_client(client, load),
                    "triton http": lambda load: first_event_s(url, MODEL, payload_for(0, load)),
                    "front door": lambda load: first_event_s(door, MODEL, payload_for(0, load)),
                },
                num_tokens,
            )


if __name__ == "__main__":
    main()
