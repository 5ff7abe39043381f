"""Shares what a step has left among the requests in context phase: how far each prompt advances.

In come requests in order of service and a number of tokens; out comes a number for each. Chunks end
on block borders, except the last of a prompt. Knows nothing of blocks or generation.

Source: TensorRT-LLM's context chunking policies.
"""

from __future__ import annotations

from collections.abc import Sequence

from tidemill.runtime.config import ChunkingPolicy, RuntimeConfig
from tidemill.runtime.request_state import RequestState
from tidemill.runtime.step import EngineLimits


def share_budget(
    context: Sequence[RequestState], budget: int, limits: EngineLimits, config: RuntimeConfig
) -> list[int]:
    """Return how many tokens each request may advance; `budget` is their sum at most."""
    # Only an engine with tinier steps than blocks has chunks that end inside of a block.
    unit = min(limits.tokens_per_block, limits.max_num_tokens)
    if config.chunking is ChunkingPolicy.EQUAL_PROGRESS:
        return _equal_progress(context, budget, unit)
    if config.chunking is ChunkingPolicy.FIRST_COME_FIRST_SERVED:
        return _first_come_first_served(context, budget, unit)
    return _whole(context, budget, unit, limits.max_num_tokens)


def _first_come_first_served(context: Sequence[RequestState], budget: int, unit: int) -> list[int]:
    counts = []
    for state in context:
        count = _cut(state, budget, unit)
        counts.append(count)
        budget -= count
    return counts


def _equal_progress(context: Sequence[RequestState], budget: int, unit: int) -> list[int]:
    """Give each a unit in turn, as long as somebody can take one."""
    counts = [0] * len(context)
    is_growing = True
    while is_growing:
        is_growing = False
        for index, state in enumerate(context):
            end = state.num_computed + counts[index]
            more = min(unit - end % unit, state.num_left - counts[index])
            if 0 < more <= budget:
                counts[index] += more
                budget -= more
                is_growing = True
    return counts


def _whole(
    context: Sequence[RequestState], budget: int, unit: int, max_num_tokens: int
) -> list[int]:
    """Give each all it needs; the first that does not fit waits, and all after it."""
    counts = [0] * len(context)
    for index, state in enumerate(context):
        if state.num_left > max_num_tokens:
            # A paused request comes back longer than its prompt was: it could never fit whole.
            counts[index] = _cut(state, budget, unit)
            break
        if state.num_left > budget:
            break
        counts[index] = state.num_left
        budget -= state.num_left
    return counts


def _cut(state: RequestState, budget: int, unit: int) -> int:
    if state.num_left <= budget:
        return state.num_left
    end = state.num_computed + budget
    return max(0, end - end % unit - state.num_computed)
