"""An executor that knows what every request should see, and looks for anything else.

Keys and values are tokens here, so that a block of another request's text is seen as text. It also
calls back in the middle of every step, between its plan and its commit.
"""

from __future__ import annotations

from collections.abc import Callable

from tidemill.runtime.request import FinishReason, Request
from tidemill.runtime.simulation import FakeExecutor, digest_answer
from tidemill.runtime.step import EngineLimits, PlanEntry, StepPlan, StepResult


def tokens_alone(request: Request, vocab_size: int) -> tuple[list[int], FinishReason]:
    """Compute a request's tokens alone: no cache, no batch, no scheduler."""
    answer = digest_answer(vocab_size)
    tokens = list(request.prompt_tokens)
    output: list[int] = []
    while len(output) < request.max_new_tokens:
        token = answer(request.request_id, tokens)
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
        output, _ = tokens_alone(request, self.limits.vocab_size)
        self._id_to_tokens[request.request_id] = [*request.prompt_tokens, *output]

    def execute(self, plan: StepPlan) -> StepResult:
        self._interrupt()
        self.num_copies += len(plan.copies)
        for entry in plan.entries:
            self._check_block_table(entry)
        result = super().execute(plan)
        self._interrupt()
        return result

    def _check_block_table(self, entry: PlanEntry) -> None:
        assert len(set(entry.block_table)) == len(entry.block_table)
        assert all(0 <= block < self.limits.num_blocks for block in entry.block_table)

    def _read(self, entry: PlanEntry, num_hidden: int) -> list[int]:
        tokens = super()._read(entry, num_hidden)
        own = self._id_to_tokens[entry.request_id]
        # What stands behind the known tokens are the request's own guesses.
        num_known = min(len(tokens), entry.start + len(entry.tokens) - entry.num_drafts)
        assert tokens[:num_known] == own[:num_known], (
            f"request {entry.request_id} reads another's text"
        )
        return tokens
