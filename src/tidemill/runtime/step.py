"""The two messages of a step: the plan that the scheduler makes and the result that comes back.

Both are records, cheap to make in every step. A plan says how many tokens each request advances;
prefill, a chunk of it and decode are then the same thing. An `Executor` is anything that turns a
plan into a result: the native engine, or a fake in simulations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from tidemill.base.record import record
from tidemill.runtime.observation import Observation
from tidemill.runtime.request import SamplingParams
from tidemill.runtime.token_history import TokenHistory


@record
class PlanEntry:
    """One request's share of a step.

    `tokens` are computed at positions [start, start + len(tokens)); `block_table` lists the blocks
    that hold positions 0 .. start + len(tokens), in order; NO_BLOCK stands for those that have left
    the attention window. A token is drawn after each of the last `num_draws` tokens: none unless
    the request's last known token is among them, one after it, and one after each guess behind it.
    `history` is there for requests whose choice depends on it.
    """

    request_id: int
    tokens: Sequence[int]
    start: int
    block_table: Sequence[int]
    num_draws: int
    sampling: SamplingParams
    history: TokenHistory | None = None

    @property
    def num_drafts(self) -> int:
        """How many of the last tokens are guesses."""
        return max(0, self.num_draws - 1)


@record
class StepPlan:
    """Entries in execution order: generation first, then context chunks.

    Before anything is written, cache blocks are copied: `copies` holds (source, destination), to
    be done in order; numbers from `num_blocks` on are slots of the host tier. Where `goes_on`, each
    entry follows the one of the plan before: same request, same blocks, the token that was drawn
    for it, one position further. It tells an executor what it need not look at again, and nothing
    else.
    """

    entries: tuple[PlanEntry, ...]
    copies: tuple[tuple[int, int], ...] = ()
    goes_on: bool = False

    @property
    def num_tokens(self) -> int:
        return sum(len(entry.tokens) for entry in self.entries)


@record
class StepResult:
    """Drawn tokens, `num_draws` for each entry, in the order of the plan's entries.

    `observations` has what requests asked to see, each with the index of its entry.
    """

    sampled_tokens: tuple[int, ...]
    observations: tuple[tuple[int, Observation], ...] = ()


@dataclass(frozen=True)
class EngineLimits:
    """The shapes an engine was built for. Units: tokens, requests, blocks.

    `attention_window` is how many last positions any layer sees; None when some layer sees all.
    """

    max_batch_size: int
    max_num_tokens: int
    max_seq_len: int
    max_input_len: int
    tokens_per_block: int
    num_blocks: int
    vocab_size: int
    num_host_blocks: int = 0
    attention_window: int | None = None


class Executor(Protocol):
    """Runs steps. Not thread-safe: one loop owns it."""

    @property
    def limits(self) -> EngineLimits: ...

    def execute(self, plan: StepPlan) -> StepResult: ...

    def arrange_memory(self) -> bool:
        """Make later steps faster, for some milliseconds; returns whether more can be done now."""
        ...

    def close(self) -> None: ...
