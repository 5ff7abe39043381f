"""What `tidemill serve` keeps in memory beside the weights, the arena and the key-value cache.

The sample is served by the real tritonserver with a cache that the load fills. All processes below
`serve` are looked at while streams run and once they have ended: proportional size (a page that n
processes share counts 1/n for each), its peak, and each process's own high-water mark. Checked
first: the answers are as long as was asked. One JSON line.

    python -m bench.memory [--engine_dir ENGINE] [--streams 16] [--tokens 128]
"""

from __future__ import annotations

import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

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
_PERIOD_S = 0.05


class Watch:
    """The largest proportional size of all processes below one, and of each; in KiB."""

    def __init__(self, process_id: int) -> None:
        self._process_id, self._done = process_id, threading.Event()
        self.peak_kb = 0
        self.at_peak: dict[str, int] = {}
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._done.wait(_PERIOD_S):
            sizes = process_sizes(self._process_id)
            if sum(sizes.values()) > self.peak_kb:
                self.peak_kb, self.at_peak = sum(sizes.values()), sizes


def process_sizes(root: int, file: str = "smaps_rollup", field: str = "Pss") -> dict[str, int]:
    """Return a figure of /proc for `serve` and each process below it, by name; in KiB."""
    sizes: dict[str, int] = {}
    for each in (root, *descendants_of(root)):
        try:
            command = Path(f"/proc/{each}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            lines = Path(f"/proc/{each}/{file}").read_text().splitlines()
        except OSError:
            continue
        values = [int(line.split()[1]) for line in lines if line.startswith(field + ":")]
        sizes[f"{_role(command)} {each}"] = sum(values)
    return sizes


def _role(command: str) -> str:
    marks = {"tidemill.host": "host", "python_backend_stub": "stub", "tritonserver": "server"}
    return next((role for mark, role in marks.items() if mark in command), "serve")


def load_up(serve: ServeProcess, num_streams: int, num_tokens: int) -> None:
    """Ask `num_streams` questions at once; every answer must have its length."""

    def ask(number: int) -> None:
        status, answer = serve.ask(MODEL, f"{number}. {PROMPT}", num_tokens)
        assert status == 200, answer

    with ThreadPoolExecutor(num_streams) as threads:
        list(threads.map(ask, range(num_streams)))


def deploy_bounded(engine: Path, repository: Path, cache_tokens: int) -> None:
    """Deploy with a cache of so many tokens."""
    deploy(DeployRequest(engine, repository, MODEL, link="hard"))
    config = repository / MODEL / "config.pbtxt"
    setting = '\nparameters { key: "max_tokens_in_paged_kv_cache" value { string_value: "%d" } }\n'
    config.write_text(config.read_text() + setting % cache_tokens)


def cache_bytes(manifest: Manifest, num_tokens: int) -> int:
    blocks = -(-num_tokens // manifest.kv.tokens_per_block) + 1
    return 2 * manifest.kv.num_layers * blocks * manifest.kv.block_bytes_per_layer


def megabytes(kib: int) -> int:
    """Millions of bytes, as the limit is stated; /proc counts in 1,024."""
    return round(kib * 1024 / 1e6)


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
        known_kb = {
            "weights": manifest.sections["weights"].size_bytes // 1024,
            "arena": manifest.arena_bytes // 1024,
            "cache": cache_bytes(manifest, cache_tokens) // 1024,
        }
        with serving(repository) as serve:
            watch = Watch(serve.process.pid)
            load_up(serve, args.streams, args.tokens)
            watch.close()
            highest = process_sizes(serve.process.pid, "status", "VmHWM")
            print_line(
                "memory",
                peak_mb=megabytes(watch.peak_kb),
                besides_mb=megabytes(watch.peak_kb - sum(known_kb.values())),
                at_most_mb=MAX_BESIDES_MB,
                known_mb={name: megabytes(kb) for name, kb in known_kb.items()},
                at_peak_mb={name: megabytes(kb) for name, kb in watch.at_peak.items()},
                high_water_mb={name: megabytes(kb) for name, kb in highest.items()},
            )


if __name__ == "__main__":
    main()
