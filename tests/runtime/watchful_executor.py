"""An executor that knows what every request should see, and looks for anything else.

Keys and values are tokens here, so that a block of another request's text is seen as text. It also
calls back in the middle of every step, between its plan and its commit.
"""

from __future__ import annotations

from collections.abc import Callable

from tidemill.runtime.kvcache.block_span import NO_BLOCK
from tidemill.runtime.request import FinishReason, Request
from tidemill.runtime.simulation import FakeExecutor, digest_answer
from tidemill.runtime.step import EngineLimits, PlanEntry, StepPlan, StepResult


def tokens_alone(request: Request, limits: EngineLimits) -> tuple[list[int], FinishReason]:
    """Compute a request's tokens alone: no cache, no batch, no scheduler."""
    answer = digest_answer(limits.vocab_size)
    tokens = list(request.prompt_tokens)
    output: list[int] = []
    while len(output) < request.max_new_tokens:
        num_unseen = max(0, len(tokens) - (limits.attention_window or len(tokens)))
        token = answer(request.request_id, [0] * num_unseen + tokens[num_unseen:])
        if token in request.end_ids:
            return output, FinishReason.END_ID
        tokens.append(token)
        output.append(token)
    return output, FinishReason.LENGTH


class WatchfulExecutor(FakeExecutor):
    """Fails as soon as a request reads a token that is not its own."""

    def __init__(self, limits: EngineLimits, interrupt: Callable[[], None] = lambda: None) -> None:
        super().__init__(limits)
        self._interrupt = interrupt
        self._id_to_tokens: dict[int, list[int]] = {}
        self.num_copies = 0

    def expect(self, request: Request) -> None:
        """Note what a request should see: its prompt and its tokens alone."""
        output, _ = tokens_alone(request, self.limits)
        self._id_to_tokens[request.request_id] = [*request.prompt_tokens, *output]

    def execute(self, plan: StepPlan) -> StepResult:
        self._interrupt()
        self.num_copies += len(plan.copies)
        for entry in plan.entries:
            self._check_block_table(entry)
        result = super().execute(plan)
        for entry in plan.entries:
            self._check_seen(entry)
        self._interrupt()
        return result

    def _check_block_table(self, entry: PlanEntry) -> None:
        # What the first token of the entry does not see lies in blocks that are freed.
        window = self.limits.attention_window or entry.start + 1
        num_dropped = max(0, entry.start + 1 - window) // self.limits.tokens_per_block
        held = entry.block_table[num_dropped:]
        assert list(entry.block_table[:num_dropped]) == [NO_BLOCK] * num_dropped
        assert len(set(held)) == len(held)
        assert all(0 <= block < self.limits.num_blocks for block in held)

    def _check_seen(self, entry: PlanEntry) -> None:
        """Look at all that the tokens of an entry see, the first one's window included."""
        unit, end = self.limits.tokens_per_block, entry.start + len(entry.tokens) - entry.num_drafts
        first = max(0, entry.start + 1 - (self.limits.attention_window or end))
        seen = [self._cache[entry.block_table[at // unit]][at % unit] for at in range(first, end)]
        own = self._id_to_tokens[entry.request_id]
        assert seen == own[first:end], f"request {entry.request_id} sees another's text"

    def _read(self, entry: PlanEntry, num_hidden: int) -> list[int]:
        tokens = super()._read(entry, num_hidden)
        num_unseen = max(0, len(tokens) - (self.limits.attention_window or len(tokens)))
        own = [0] * num_unseen + self._id_to_tokens[entry.request_id][num_unseen:]
        # What stands behind the known tokens are the request's own guesses.
        num_known = min(len(tokens), entry.start + len(entry.tokens) - entry.num_drafts)
        assert tokens[:num_known] == own[:num_known], (
            f"request {entry.request_id} reads another's text"
        )
        return tokens
