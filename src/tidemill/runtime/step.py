"""The two messages of a step: the plan that the scheduler makes and the result that comes back.

Both are tuples, cheap to make in every step. A plan says how many tokens each request advances;
prefill, a chunk of it and decode are then the same thing. An `Executor` is anything that turns a
plan into a result: the native engine, or a fake in simulations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple, Protocol

from tidemill.runtime.observation import Observation
from tidemill.runtime.request import SamplingParams
from tidemill.runtime.token_history import TokenHistory

NO_OBSERVATIONS: Mapping[int, Observation] = MappingProxyType({})


class PlanEntry(NamedTuple):
    """One request's share of a step.

    `tokens` are computed at positions [start, start + len(tokens)); `block_table` lists the blocks
    that hold positions 0 .. start + len(tokens), in order; NO_BLOCK stands for those that have left
    the attention window. `samples` is true where the last token
    of the entry is the last known token of the request, so that a new one is drawn. The last
    `num_drafts` tokens are guesses: a token is drawn after each of them, too. `history` is there
    for requests whose choice depends on it.
    """

    request_id: int
    tokens: Sequence[int]
    start: int
    block_table: Sequence[int]
    samples: bool
    sampling: SamplingParams
    num_drafts: int = 0
    history: TokenHistory | None = None

    @property
    def num_draws(self) -> int:
        """Tokens that are drawn, one after each of the last `num_draws` tokens."""
        return self.num_drafts + 1 if self.samples else 0


class StepPlan(NamedTuple):
    """Entries in execution order: generation first, then context chunks.

    Before anything is written, cache blocks are copied: `copies` holds (source, destination), to
    be done in order.
    """

    entries: tuple[PlanEntry, ...]
    copies: tuple[tuple[int, int], ...] = ()

    @property
    def num_tokens(self) -> int:
        return sum(len(entry.tokens) for entry in self.entries)


class StepResult(NamedTuple):
    """Drawn tokens, `num_draws` for each entry, in the order of the plan's entries.

    `observations` has what requests asked to see, by the index of their entry.
    """

    sampled_tokens: tuple[int, ...]
    observations: Mapping[int, Observation] = NO_OBSERVATIONS


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
    attention_window: int | None = None


class Executor(Protocol):
    """Runs steps. Not thread-safe: one loop owns it."""

    @property
    def limits(self) -> EngineLimits: ...

    def execute(self, plan: StepPlan) -> StepResult: ...

    def close(self) -> None: ...
