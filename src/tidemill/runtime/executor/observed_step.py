"""Runs a step in parts, where a request asks to see logits or to change them itself.

In: a step's inputs, filled. Out: tokens as ever, and `Observation`s by entry. The plan has three
parts: the trunk up to the first gather_last, the head from there to the logits, which the gathers
alone feed, and the sample op. The head runs
again for the rows of prompts that somebody asked for, as many at a time as a step may draw; kernels
are batch-invariant, so that these rows are what they would have been. Costs others nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from weakref import WeakKeyDictionary

import numpy as np

from tidemill.base.debug import warn
from tidemill.device.cpu import Array, Team
from tidemill.engine.manifest import Manifest
from tidemill.runtime.executor.logprobs import token_logprobs
from tidemill.runtime.executor.step_inputs import StepInputs, WatchedEntry
from tidemill.runtime.observation import Observation, Sight, TokenLogprobs
from tidemill.runtime.step import StepPlan
from tidemill.runtime.token_history import TokenHistory


class ObservedStep:
    """The parts of one engine's plan, and what was seen of prompts already."""

    def __init__(
        self,
        manifest: Manifest,
        inputs: StepInputs,
        team: Team,
        buffer: Callable[[str], Array],
    ) -> None:
        kinds = [op.op for op in manifest.plan]
        self._head, self._sample = kinds.index("gather_last"), len(kinds) - 1
        assert kinds[-1] == "sample"
        self._inputs, self._team = inputs, team
        logits = next(s for s in manifest.buffers if s.name == manifest.plan[-2].output)
        self._logits = buffer(logits.name)[:, : logits.columns]
        self._gathered = _gathered_buffers(manifest, self._head, buffer)
        self._tokens = buffer(manifest.plan[-1].output)[:, 0]
        self._num_seen: WeakKeyDictionary[TokenHistory, int] = WeakKeyDictionary()

    def run(self, plan: StepPlan, num_rows: int) -> tuple[tuple[int, Observation], ...]:
        """Run the filled step."""
        index_to_prompt: dict[int, Sight] = {}
        self._run_part(0, self._head)
        drawn_rows = self._inputs.logit_rows(num_rows).copy()
        hidden = [each[: plan.num_tokens].copy() for each in self._gathered]
        for watched in self._inputs.watched:
            sight = self._see_prompt(plan, watched, hidden)
            if sight is not None:
                index_to_prompt[watched.index] = sight
        self._run_head(drawn_rows, hidden)
        has_processors = any(each.history.request.processor for each in self._inputs.watched)
        # The sample op leaves logits as they are; processors do not.
        raw = self._logits[:num_rows].copy() if has_processors else self._logits
        index_to_error = dict(self._process(plan))
        self._run_part(self._sample, self._sample + 1)
        self._team.select(0, self._sample + 1)
        found = []
        for watched in self._inputs.watched:
            prompt = index_to_prompt.get(watched.index)
            output = self._see_output(plan, watched, raw)
            error = index_to_error.get(watched.index, "")
            if prompt or output or error:
                found.append((watched.index, Observation(prompt, output, error)))
        return tuple(found)

    def _run_part(self, first: int, last: int) -> None:
        self._team.select(first, last - first)
        self._team.step()

    def _run_head(self, rows: Array, hidden: Sequence[Array]) -> None:
        """Compute logits of packed rows; the head may write over what it gathers from."""
        for buffer, rows_before in zip(self._gathered, hidden, strict=True):
            buffer[: len(rows_before)] = rows_before
        self._inputs.set_logit_rows(rows)
        self._run_part(self._head, self._sample)

    def _see_prompt(
        self, plan: StepPlan, watched: WatchedEntry, hidden: Sequence[Array]
    ) -> Sight | None:
        """Look at the prompt's positions that this step computes and nobody has seen."""
        request, entry = watched.history.request, plan.entries[watched.index]
        wishes, prompt = request.wishes, request.prompt_tokens
        if wishes is None or not wishes.is_of_prompt:
            return None
        start = max(entry.start, self._num_seen.get(watched.history, 0))
        end = min(entry.start + len(entry.tokens), len(prompt))
        if start >= end:
            return None
        self._num_seen[watched.history] = end
        first_row = watched.row - entry.start
        blocks = [*self._rows_of_logits(first_row + start, first_row + end, hidden)]
        logits = np.concatenate(blocks)
        return _sight(
            logits,
            prompt[start + 1 : end + 1],
            wishes.num_prompt_logprobs,
            wishes.context_logits,
        )

    def _rows_of_logits(self, first: int, last: int, hidden: Sequence[Array]) -> Iterator[Array]:
        for row in range(first, last, len(self._logits)):
            rows = np.arange(row, min(row + len(self._logits), last))
            self._run_head(rows, hidden)
            yield self._logits[: len(rows)].copy()

    def _process(self, plan: StepPlan) -> Iterator[tuple[int, str]]:
        """Let users' processors change their rows; yields the indices of those that failed."""
        for watched in self._inputs.watched:
            request = watched.history.request
            if request.processor is None or not plan.entries[watched.index].num_draws:
                continue
            row = self._logits[watched.logit_row]
            tokens = list(watched.history.tokens)
            try:
                request.processor(request.request_id, row[None, None], [tokens], None, None)
            except Exception as error:
                warn("logits processor", f"request {request.request_id}: {error!r}")
                yield watched.index, f"processor: {type(error).__name__}: {error}"

    def _see_output(self, plan: StepPlan, watched: WatchedEntry, raw: Array) -> Sight | None:
        wishes = watched.history.request.wishes
        if wishes is None or not wishes.is_of_output or not plan.entries[watched.index].num_draws:
            return None
        token = int(self._tokens[watched.logit_row])
        return _sight(
            raw[watched.logit_row][None], [token], wishes.num_logprobs, wishes.generation_logits
        )


def _sight(
    logits: Array, tokens: Sequence[int], num_logprobs: int | None, has_logits: bool
) -> Sight:
    """Tell of rows of logits, and of the tokens that came after them; the last may be unknown."""
    logprobs: tuple[TokenLogprobs, ...] = ()
    if num_logprobs is not None:
        logprobs = tuple(
            token_logprobs(row, token, num_logprobs)
            for row, token in zip(logits, tokens, strict=False)
        )
    return Sight(logprobs, logits.tobytes() if has_logits else b"")


def _gathered_buffers(manifest: Manifest, head: int, buffer: Callable[[str], Array]) -> list[Array]:
    """What gathers read: the buffers at the places that their records name."""
    buffers = []
    for at in range(head, len(manifest.plan)):
        op = manifest.plan[at]
        if op.op == "gather_last":
            place = next(each.value for each in op.operands if each.name == "x")
            spec = next(
                spec
                for spec in manifest.buffers
                if spec.offset_bytes == place and spec.first_op <= at <= spec.last_op
            )
            buffers.append(buffer(spec.name))
    return buffers
