"""Judges a memory plan by brute force, sharing no code with the planner.

In: the requests and the plan made for them; out: nothing, or one error with every fault: a buffer
without a place or at an odd address, two live buffers that overlap, a total that is too small or
larger than needed. Knows nothing of how plans are made.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from tidemill.base.errors import BuildError
from tidemill.builder.memory_plan import BufferRequest, MemoryPlan

# Written out again on purpose: a cache line, and the widest vector register.
_CACHE_LINE_BYTES = 64


def verify_memory_plan(requests: Sequence[BufferRequest], plan: MemoryPlan) -> None:
    """Check names, alignment, overlaps and total of a plan.

    Raises: BuildError that lists every fault; it is a bug of the planner or of the live ranges.
    """
    faults = _name_faults(requests, plan)
    if not faults:
        faults = _place_faults(requests, plan) + _overlap_faults(requests, plan)
    if faults:
        raise BuildError(
            "the memory plan is wrong; this is a bug in Tidemill",
            where="builder, memory plan",
            expected=f"{len(requests)} aligned buffers of which no two live ones overlap",
            got="; ".join(faults),
            hint="please report this with the output of TIDEMILL_DEBUG=3",
        )


def _name_faults(requests: Sequence[BufferRequest], plan: MemoryPlan) -> list[str]:
    names = [request.name for request in requests]
    faults = [f"{name} is requested twice" for name in sorted(set(names)) if names.count(name) > 1]
    faults += [f"{name} has no place" for name in names if name not in plan.offsets]
    faults += [f"{name} was never requested" for name in plan.offsets if name not in names]
    return faults


def _place_faults(requests: Sequence[BufferRequest], plan: MemoryPlan) -> list[str]:
    faults = []
    highest_end = 0
    for request in requests:
        offset = plan.offsets[request.name]
        if offset < 0 or offset % _CACHE_LINE_BYTES != 0:
            faults.append(f"{request.name} is misaligned at {offset}")
        highest_end = max(highest_end, offset + request.size_bytes)
    if not highest_end <= plan.total_bytes < highest_end + _CACHE_LINE_BYTES:
        faults.append(f"the total is {plan.total_bytes} bytes, but the last buffer ends at "
                      f"{highest_end}")  # fmt: skip
    return faults


def _overlap_faults(requests: Sequence[BufferRequest], plan: MemoryPlan) -> list[str]:
    faults = []
    for one, other in combinations(requests, 2):
        if one.last_op < other.first_op or other.last_op < one.first_op:
            continue
        low, high = sorted((one, other), key=lambda request: plan.offsets[request.name])
        shared = plan.offsets[low.name] + low.size_bytes - plan.offsets[high.name]
        if shared > 0 and high.size_bytes > 0:
            ops = f"{max(one.first_op, other.first_op)}..{min(one.last_op, other.last_op)}"
            faults.append(f"{low.name} and {high.name} overlap by {shared} bytes in ops {ops}")
    return faults
