"""What `tidemill serve` keeps in memory beside the weights, the arena and the key-value cache.

The sample is served by the real tritonserver with a cache that the load fills: streams, then a long
prompt. From ready on all processes below `serve` are looked at: their own memory, and each page of
a file once, whoever else on the machine has it. The peak of the sum is printed, and each process's
own high-water mark since its start. MB are 10^6 bytes. One JSON line.

    python -m bench.memory [--engine_dir ENGINE] [--streams 16] [--tokens 128]
"""

from __future__ import annotations

import mmap
import os
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from bench.parts.command_line import parser_of
from bench.parts.figures import print_line
from bench.parts.sample_engine import build_sample
from tests.triton.serve_process import ServeProcess, serving
from tidemill.engine.manifest import Manifest
from tidemill.engine.reader import EngineFile
from tidemill.frontends.triton.deploy import DeployRequest, deploy
from tidemill.frontends.triton.process_tree import descendants_of

MODEL = "bench"
PROMPT = "The tide turns twice a day, and so does the mill"
MAX_BESIDES_MB = 150
LONG_PROMPT_DIVISOR = 16
_PERIOD_S = 0.2
_IN_FILE_BIT = 61  # of pagemap's words; two above it stands whether the page is in memory

FilePage = tuple[str, str, int]


class Watch:
    """The most memory that all processes below one had, and each of them then; in bytes."""

    def __init__(self, process_id: int) -> None:
        self._process_id, self._done = process_id, threading.Event()
        self.peak = 0
        self.at_peak: dict[str, int] = {}
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._done.wait(_PERIOD_S):
            sizes = process_sizes(self._process_id)
            if sum(sizes.values()) > self.peak:
                self.peak, self.at_peak = sum(sizes.values()), sizes


def process_sizes(root: int) -> dict[str, int]:
    """Return the bytes that `serve` and each process below it hold, by name.

    A page of a file counts for the first that has it, whatever other processes of the machine do.
    """
    sizes: dict[str, int] = {}
    counted: set[FilePage] = set()
    for each in (root, *descendants_of(root)):
        try:
            pages = file_pages(each) - counted
            own = figure_of(each, "smaps_rollup", "Anonymous")
            sizes[name_of(each)] = own + len(pages) * mmap.PAGESIZE
        except OSError:
            continue
        counted |= pages
    return sizes


def figure_of(process_id: int, file: str, field: str) -> int:
    """Return a figure of /proc, in bytes."""
    lines = Path(f"/proc/{process_id}/{file}").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(field + ":")) * 1024


def file_pages(process_id: int) -> set[FilePage]:
    """Return the pages of files that a process has in memory: (device, file, number)."""
    found: set[FilePage] = set()
    lines = Path(f"/proc/{process_id}/maps").read_text().splitlines()
    with open(f"/proc/{process_id}/pagemap", "rb", buffering=0) as pagemap:
        for span, _, offset, device, inode, *_ in map(str.split, lines):
            start, end = (int(number, 16) // mmap.PAGESIZE for number in span.split("-"))
            if inode != "0":
                data = os.pread(pagemap.fileno(), 8 * (end - start), 8 * start)
                words = np.frombuffer(data, np.uint64)
                first = int(offset, 16) // mmap.PAGESIZE
                there = np.flatnonzero(words >> _IN_FILE_BIT & 0b101 == 0b101)
                found.update((device, inode, first + page) for page in there.tolist())
    return found


def name_of(process_id: int) -> str:
    """Return what a process below `serve` is, with its id."""
    command = Path(f"/proc/{process_id}/cmdline").read_text()
    marks = {"tidemill.host": "host", "python_backend_stub": "stub", "tritonserver": "server"}
    role = next((role for mark, role in marks.items() if mark in command), "serve")
    return f"{role} {process_id}"


def load_up(serve: ServeProcess, num_streams: int, num_tokens: int) -> None:
    """Ask `num_streams` questions at once, then one as long as most of the cache."""

    def ask(prompt: str) -> None:
        status, answer = serve.ask(MODEL, prompt, num_tokens)
        assert status == 200, answer

    with ThreadPoolExecutor(num_streams) as threads:
        list(threads.map(ask, [f"{number}. {PROMPT}" for number in range(num_streams)]))
    ask(PROMPT * (num_streams * num_tokens // LONG_PROMPT_DIVISOR))


def deploy_bounded(engine: Path, repository: Path, cache_tokens: int) -> None:
    """Deploy with a cache of so many tokens."""
    deploy(DeployRequest(engine, repository, MODEL, link="hard"))
    config = repository / MODEL / "config.pbtxt"
    setting = '\nparameters { key: "max_tokens_in_paged_kv_cache" value { string_value: "%d" } }\n'
    config.write_text(config.read_text() + setting % cache_tokens)


def cache_bytes(manifest: Manifest, num_tokens: int) -> int:
    blocks = -(-num_tokens // manifest.kv.tokens_per_block) + 1
    return 2 * manifest.kv.num_layers * blocks * manifest.kv.block_bytes_per_layer


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--engine_dir", type=Path)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=128)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        engine_dir = args.engine_dir or build_sample(Path(directory))
        repository = Path(directory) / "repository"
        cache_tokens = args.streams * args.tokens
        deploy_bounded(engine_dir, repository, cache_tokens)
        with EngineFile.open(engine_dir) as engine:
            manifest = engine.manifest
        known = {
            "weights": manifest.sections["weights"].size_bytes,
            "arena": manifest.arena_bytes,
            "cache": cache_bytes(manifest, cache_tokens),
        }
        with serving(repository) as serve:
            watch = Watch(serve.process.pid)
            load_up(serve, args.streams, args.tokens)
            watch.close()
            if not any(name.startswith("host") for name in watch.at_peak):
                raise SystemExit("another server runs this engine's host: end it first")
            print_line(
                "memory",
                peak_mb=to_mb(watch.peak),
                besides_mb=to_mb(watch.peak - sum(known.values())),
                at_most_mb=MAX_BESIDES_MB,
                known_mb={name: to_mb(size) for name, size in known.items()},
                at_peak_mb={name: to_mb(size) for name, size in watch.at_peak.items()},
                high_water_mb={name: to_mb(size) for name, size in highest(serve).items()},
            )


def highest(serve: ServeProcess) -> dict[str, int]:
    """Return what each process had at most, shared pages and all."""
    processes = (serve.process.pid, *descendants_of(serve.process.pid))
    return {name_of(each): figure_of(each, "status", "VmHWM") for each in processes}


def to_mb(size: int) -> int:
    """Round to megabytes: 10^6 bytes, as the limit counts."""
    return round(size / 1e6)


if __name__ == "__main__":
    main()
