"""The host's command line: `--engine-dir DIR --socket PATH ...`.

Started by `host.launch`, never by hand: it is told where to report that it is ready.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import nullcontext
from pathlib import Path

import msgspec

import tidemill.base.lean_imports  # noqa: F401 (before whatever imports NumPy)
from tidemill.engine.kept_engines import hold_if_kept
from tidemill.host.config import SessionConfig
from tidemill.host.process import ProcessConfig, run_host
from tidemill.host.session import Session
from tidemill.runtime.config import RuntimeConfig


def parse_arguments(arguments: list[str]) -> tuple[Path, SessionConfig, ProcessConfig]:
    """Read the flags that `HostConfig.command` writes."""
    parser = argparse.ArgumentParser(prog="tidemill.host", description=__doc__)
    parser.add_argument("--engine-dir", type=Path, required=True)
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--ready-fd", type=int, required=True)
    parser.add_argument("--grace-seconds", type=float, required=True)
    parser.add_argument("--kv-cache-tokens", type=int)
    parser.add_argument("--num-threads", type=int)
    parser.add_argument("--kv-cache-fraction", type=float)
    parser.add_argument("--pin-threads", type=int)
    parser.add_argument("--kv-cache-host-memory-bytes", type=int, default=0)
    parser.add_argument("--runtime", type=_runtime_config, default=RuntimeConfig())
    flags = parser.parse_args(arguments)
    session = SessionConfig(
        flags.kv_cache_tokens,
        flags.num_threads,
        flags.kv_cache_fraction,
        None if flags.pin_threads is None else bool(flags.pin_threads),
        flags.runtime,
        flags.kv_cache_host_memory_bytes,
    ).in_own_process
    process = ProcessConfig(flags.socket, flags.ready_fd, flags.grace_seconds)
    return flags.engine_dir, session, process


def _runtime_config(text: str) -> RuntimeConfig:
    return msgspec.json.decode(text, type=RuntimeConfig)


def main() -> int:
    """Run a host for one engine, which stays where a cache keeps it: a host may follow this one."""
    engine_dir, session_config, process_config = parse_arguments(sys.argv[1:])
    with hold_if_kept(engine_dir) or nullcontext():
        return run_host(lambda: Session.open(engine_dir, session_config), process_config)


if __name__ == "__main__":
    sys.exit(main())
