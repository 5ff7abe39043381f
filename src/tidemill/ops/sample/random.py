"""Counter-based random numbers: the same (seed, position) draws the same number, always.

In: a seed and a position. Out: a number in [0, 1), a multiple of 2^-24. No state, so that neither
batch, chunking nor resumption can change a draw. Native code computes the same bits.

Source: Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators" (SplitMix64).
"""

from __future__ import annotations

_MASK = (1 << 64) - 1
_GOLDEN_GAMMA = 0x9E3779B97F4A7C15


def uniform(seed: int, position: int) -> float:
    """Draw the number of one position. Both arguments count modulo 2^64."""
    z = (seed * _GOLDEN_GAMMA + position + 1) & _MASK
    return (_mix(_mix(z)) >> 40) * 2.0**-24


def _mix(z: int) -> int:
    """Finalise as SplitMix64 does: every input bit reaches every output bit."""
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)
