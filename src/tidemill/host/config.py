"""How an engine is run, and how its host process is found, started and left.

Plain settings, chosen by whoever opens a session or a client. They decide which host is shared:
clients that ask for the same engine and the same settings reach the same process.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from tidemill.base.cpus import MAX_THREADS, cpu_quota, num_physical_cores
from tidemill.base.errors import ConfigError
from tidemill.base.python_start import python_arguments
from tidemill.runtime.config import DEFAULT_CONFIG, RuntimeConfig, number_faults


@dataclass(frozen=True)
class SessionConfig:
    """How an engine is run. None leaves the choice to the engine and the machine.

    Units: `kv_cache_tokens` counts tokens; without it, `kv_cache_fraction` is the share of the
    machine's free memory that the cache may take. With `pin_threads` each thread stays on a core of
    its own; left out, a process of ours does so if they are as many as the cores and there is no
    quota of CPU time.
    """

    kv_cache_tokens: int | None = None
    num_threads: int | None = None
    kv_cache_fraction: float | None = None
    pin_threads: bool | None = None
    runtime: RuntimeConfig = DEFAULT_CONFIG
    kv_cache_host_memory_bytes: int = 0

    def __post_init__(self) -> None:
        faults = number_faults("kv_cache_host_memory_bytes", self.kv_cache_host_memory_bytes, 0)
        if self.kv_cache_tokens is not None:
            faults += number_faults("kv_cache_tokens", self.kv_cache_tokens, 1)
        if self.num_threads is not None:
            faults += number_faults("num_threads", self.num_threads, 1, MAX_THREADS)
        fraction = self.kv_cache_fraction
        is_share = isinstance(fraction, (int, float)) and 0 < fraction <= 1
        if fraction is not None and not is_share:
            faults.append(f"kv_cache_fraction must be over 0 and at most 1, got {fraction!r}")
        if faults:
            raise ConfigError(
                "an engine cannot be run so",
                where="session config",
                expected="every number within its bounds",
                got="; ".join(faults),
                hint="leave a setting out to have the default; see docs/RUNTIME.md",
            )

    @property
    def in_own_process(self) -> SessionConfig:
        """The same for a process that does nothing else: threads for all cores do not move."""
        if self.pin_threads is not None:
            return self
        takes_all = self.num_threads in (None, num_physical_cores())
        return replace(self, pin_threads=takes_all and cpu_quota() is None)


@dataclass(frozen=True)
class HostConfig:
    """How a client finds or starts the host of an engine.

    `program` is the command that starts a host, without its flags; empty means this Python's
    `tidemill.host`. An idle host leaves `grace_seconds` after its last client.
    """

    grace_seconds: float = 5.0
    start_timeout_seconds: float = 120.0
    program: tuple[str, ...] = ()

    def command(
        self, engine_dir: Path, session: SessionConfig, socket_path: Path, ready_fd: int
    ) -> list[str]:
        """Return the command line that starts a host."""
        flags = {
            "--engine-dir": engine_dir,
            "--socket": socket_path,
            "--ready-fd": ready_fd,
            "--grace-seconds": self.grace_seconds,
            "--kv-cache-tokens": session.kv_cache_tokens,
            "--num-threads": session.num_threads,
            "--kv-cache-fraction": session.kv_cache_fraction,
            "--pin-threads": None if session.pin_threads is None else int(session.pin_threads),
            "--kv-cache-host-memory-bytes": session.kv_cache_host_memory_bytes,
            "--runtime": msgspec.json.encode(session.runtime).decode(),
        }
        program = self.program or (_python(), *python_arguments("tidemill.host.__main__"))
        given = [(name, str(value)) for name, value in flags.items() if value is not None]
        return [*program, *(part for pair in given for part in pair)]


def _python() -> str:
    # In an embedded interpreter, such as Triton's stub, sys.executable is the embedding program.
    if Path(sys.executable or "").name.startswith("python"):
        return sys.executable
    return str(Path(sys.prefix) / "bin" / "python3")
