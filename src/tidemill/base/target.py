"""Targets: the instruction sets that engines are compiled for, and what this machine has.

A target is a named floor, not a CPU model: code for it runs on every machine that has its
features. Detection reads the kernel's list, so a server needs no compiler to choose.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class Target:
    """One instruction set floor.

    `cpu` and `features` are LLVM's names; `required` the kernel's flags that a host must show.
    """

    name: str
    arch: str
    triple: str
    cpu: str
    features: str
    required: frozenset[str]


_V3 = frozenset({"abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"})
_V4 = _V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}

X86_64_V4_BF16 = Target(
    "x86-64-v4-bf16", "x86_64", "x86_64-unknown-linux-gnu", "x86-64-v4",
    "+avx512bf16,+avx512vnni", _V4 | {"avx512_bf16", "avx512_vnni"},
)  # fmt: skip
X86_64_V4 = Target("x86-64-v4", "x86_64", "x86_64-unknown-linux-gnu", "x86-64-v4", "", _V4)
X86_64_V3_VNNI = Target(
    "x86-64-v3-vnni", "x86_64", "x86_64-unknown-linux-gnu", "x86-64-v3", "+avxvnni",
    _V3 | {"avx_vnni"},
)  # fmt: skip
X86_64_V3 = Target("x86-64-v3", "x86_64", "x86_64-unknown-linux-gnu", "x86-64-v3", "", _V3)
_NEON = frozenset({"asimd", "asimdhp"})
AARCH64_BF16 = Target(
    "aarch64-bf16", "aarch64", "aarch64-unknown-linux-gnu", "generic",
    "+neon,+fullfp16,+dotprod,+bf16,+i8mm", _NEON | {"asimddp", "bf16", "i8mm"},
)  # fmt: skip
AARCH64_DOTPROD = Target(
    "aarch64-dotprod", "aarch64", "aarch64-unknown-linux-gnu", "generic",
    "+neon,+fullfp16,+dotprod", _NEON | {"asimddp"},
)  # fmt: skip
AARCH64 = Target(
    "aarch64-neon", "aarch64", "aarch64-unknown-linux-gnu", "generic", "+neon,+fullfp16", _NEON,
)  # fmt: skip

# Best first: the first one that the host satisfies is its native target.
TARGETS = (
    X86_64_V4_BF16, X86_64_V4, X86_64_V3_VNNI, X86_64_V3, AARCH64_BF16, AARCH64_DOTPROD, AARCH64,
)  # fmt: skip
NAME_TO_TARGET = {target.name: target for target in TARGETS}


@cache
def host_features() -> frozenset[str]:
    """The feature flags of the first CPU as Linux lists them."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def host_targets() -> tuple[Target, ...]:
    """Targets whose code runs on this machine, best first."""
    arch = platform.machine()
    return tuple(t for t in TARGETS if t.arch == arch and t.required <= host_features())
