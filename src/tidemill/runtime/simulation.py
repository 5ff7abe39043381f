"""A runtime without a device: a fake executor, and schedules of imagined workloads.

`simulate` takes requests as lengths and arrival steps, runs the real scheduler and block pool on
them, and gives what each iteration held; use it to see or check a policy anywhere:

    simulate([SimulatedRequest(prompt_length=5, max_new_tokens=3)], limits)

`FakeExecutor` keeps a cache of tokens instead of keys and values and reads every token back
through the block table, so a block lost, shared or left unwritten changes what it answers. Tokens
before the attention window are not read: they count as 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tidemill.runtime.config import DEFAULT_CONFIG, RuntimeConfig
from tidemill.runtime.events import EventKind
from tidemill.runtime.loop import Loop
from tidemill.runtime.request import FinishReason, Request
from tidemill.runtime.request_state import RequestState
from tidemill.runtime.step import EngineLimits, PlanEntry, StepPlan, StepResult

MAX_EVENTS = 10_000

Answer = Callable[[int, Sequence[int]], int]
"""Gives the token that follows: from the request's id and all tokens so far."""


def digest_answer(vocab_size: int) -> Answer:
    """Return an answer that depends on every token so far and on nothing else."""

    def answer(request_id: int, tokens: Sequence[int]) -> int:
        digest = 17
        for token in tokens:
            digest = (digest * 1000003 + token + 1) % 2147483647
        return digest % vocab_size

    return answer


class FakeExecutor:
    """An executor whose keys and values are the tokens themselves."""

    def __init__(self, limits: EngineLimits, answer: Answer | None = None) -> None:
        self._limits = limits
        self._answer = answer or digest_answer(limits.vocab_size)
        self._cache: list[list[int | None]] = [
            [None] * limits.tokens_per_block
            for _ in range(limits.num_blocks + limits.num_host_blocks)
        ]
        self.is_closed = False

    @property
    def limits(self) -> EngineLimits:
        return self._limits

    def execute(self, plan: StepPlan) -> StepResult:
        """Write every entry's tokens, then draw from what the block tables show."""
        assert 0 < len(plan.entries) <= self._limits.max_batch_size, "batch size"
        assert plan.num_tokens <= self._limits.max_num_tokens, "tokens in a step"
        num_draws = sum(entry.num_draws for entry in plan.entries)
        assert num_draws <= self._limits.max_batch_size, "tokens drawn in a step"
        for source, destination in plan.copies:
            self._cache[destination] = list(self._cache[source])
        for entry in plan.entries:
            self._write(entry)
        return StepResult(
            tuple(
                self._answer(entry.request_id, self._read(entry, num_hidden))
                for entry in plan.entries
                for num_hidden in range(entry.num_draws - 1, -1, -1)
            )
        )

    def arrange_memory(self) -> bool:
        """There is nothing to arrange."""
        return False

    def close(self) -> None:
        self.is_closed = True

    def _write(self, entry: PlanEntry) -> None:
        unit = self._limits.tokens_per_block
        for position, token in enumerate(entry.tokens, entry.start):
            self._cache[entry.block_table[position // unit]][position % unit] = token

    def _read(self, entry: PlanEntry, num_hidden: int) -> list[int]:
        """Read what is seen of a sequence without its last `num_hidden` tokens."""
        unit, end = self._limits.tokens_per_block, entry.start + len(entry.tokens) - num_hidden
        tokens = [0] * max(0, end - (self._limits.attention_window or end))
        for position in range(len(tokens), end):
            token = self._cache[entry.block_table[position // unit]][position % unit]
            assert token is not None, f"request {entry.request_id} reads unwritten {position}"
            tokens.append(token)
        return tokens


@dataclass(frozen=True)
class SimulatedRequest:
    """A request by its lengths.

    `output_length` None means that it runs to `max_new_tokens`. Prompts differ, except that those
    of one `prompt_group` begin alike. `draft_length` right guesses come with each generated token.
    """

    prompt_length: int
    max_new_tokens: int
    output_length: int | None = None
    arrival_step: int = 0
    priority: float = 0.5
    prompt_group: str | None = None
    draft_length: int = 0


@dataclass(frozen=True)
class Iteration:
    """One step: who advanced by how much in it, and what is left after it.

    `generation` and `context` name entries in order, `context` with tokens computed; `new_tokens`
    and `ended` tell what it gave; `admitted` and `paused` who changed places before it. Units:
    `used_blocks` are held by requests, `reused_blocks` counts since the start.
    """

    step: int
    generation: tuple[int, ...]
    context: tuple[tuple[int, int], ...]
    ended: tuple[int, ...]
    num_queued: int
    used_blocks: int
    admitted: tuple[int, ...] = ()
    paused: tuple[int, ...] = ()
    new_tokens: tuple[tuple[int, int], ...] = ()
    reused_blocks: int = 0


class _RecordingExecutor(FakeExecutor):
    def __init__(self, limits: EngineLimits, answer: Answer) -> None:
        super().__init__(limits, answer)
        self.latest = StepPlan(())

    def execute(self, plan: StepPlan) -> StepResult:
        self.latest = plan
        return super().execute(plan)


def simulate(
    requests: Sequence[SimulatedRequest],
    limits: EngineLimits,
    config: RuntimeConfig = DEFAULT_CONFIG,
    max_steps: int = 1_000_000,
) -> list[Iteration]:
    """Run imagined requests to their ends; one `Iteration` for each step with something in it.

    Requests are named by their index. Token 1 ends a request at its `output_length`.

    Raises: InvalidRequestError when a request can never fit, QueueFullError for one too many.
    """

    def answer(request_id: int, tokens: Sequence[int]) -> int:
        request = requests[request_id]
        return int(len(tokens) - request.prompt_length == request.output_length)

    def draft(state: RequestState, num_tokens: int) -> Sequence[int]:
        return (0,) * min(num_tokens, requests[state.request.request_id].draft_length)

    executor = _RecordingExecutor(limits, answer)
    drafted = max((request.draft_length for request in requests), default=0)
    # Steps take no time here, whatever the machine needs to imagine them.
    config = replace(
        config, event_buffer_max_size=MAX_EVENTS, max_draft_len=drafted, max_step_ms=0.0
    )
    now = [0.0]
    loop = Loop(executor, config, lambda: now[0], draft if drafted else None)
    arrivals = sorted(range(len(requests)), key=lambda index: requests[index].arrival_step)
    iterations: list[Iteration] = []
    for step in range(max_steps):
        now[0] = float(step)
        while arrivals and requests[arrivals[0]].arrival_step <= step:
            index = arrivals.pop(0)
            loop.submit(_to_request(index, requests[index]))
        if loop.has_work:
            iterations.append(_record(step, loop, executor))
        elif not arrivals:
            break
    return iterations


def _to_request(index: int, simulated: SimulatedRequest) -> Request:
    # The salt keeps prompts apart: all consist of the same token.
    group = simulated.prompt_group
    return Request(
        index,
        (0,) * simulated.prompt_length,
        simulated.max_new_tokens,
        end_ids=(1,),
        priority=simulated.priority,
        cache_salt=f"request {index}" if group is None else f"group {group}",
    )


def _record(step: int, loop: Loop, executor: _RecordingExecutor) -> Iteration:
    num_events = loop.events_since(0)[-1].number
    updates = loop.step()
    loop.check()
    stats, events = loop.stats(), loop.events_since(num_events)
    entries = executor.latest.entries
    num_generation = stats.num_generation_requests
    return Iteration(
        step=step,
        generation=tuple(entry.request_id for entry in entries[:num_generation]),
        context=tuple((entry.request_id, len(entry.tokens)) for entry in entries[num_generation:]),
        ended=tuple(
            update.request_id
            for update in updates
            if update.finish_reason is not FinishReason.NOT_FINISHED
        ),
        num_queued=stats.num_queued_requests,
        used_blocks=stats.used_blocks,
        admitted=tuple(e.request_id for e in events if e.kind is EventKind.ADMITTED),
        paused=tuple(e.request_id for e in events if e.kind is EventKind.PAUSED),
        new_tokens=tuple((update.request_id, len(update.new_tokens)) for update in updates),
        reused_blocks=loop.cache_counters.reused,
    )
