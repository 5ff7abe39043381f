"""What the result of a step means to one request: guesses kept, tokens gained, perhaps an end.

In come a request's state, its entry in the plan and the tokens drawn for it; the state advances.
Knows nothing of blocks or other requests.
"""

from __future__ import annotations

from tidemill.runtime.request import END_ID, NOT_FINISHED, FinishReason, TokenUpdate
from tidemill.runtime.request_state import RequestState
from tidemill.runtime.step import PlanEntry


def advance(
    state: RequestState, entry: PlanEntry, drawn: tuple[int, ...], now: float
) -> TokenUpdate | None:
    """Take in what was computed and drawn; None when nothing was drawn.

    A guess stays if it is what was drawn in its place; what follows a wrong one is forgotten, and
    its positions are computed again. So guesses change when tokens come, never which.
    """
    if not drawn:
        state.num_computed += len(entry.tokens)
        return None
    num_drafts = len(drawn) - 1
    state.num_computed += len(entry.tokens) - num_drafts
    if state.observations and state.has_failed:
        return state.tell(FinishReason.CANCELLED)
    metrics = state.metrics
    metrics.last_token_time = now
    if metrics.first_token_time is None:
        metrics.first_token_time = now
    if num_drafts:
        return _advance_by_guesses(state, entry, drawn)
    reason = state.accept(drawn[0])
    return state.tell(reason, () if reason is END_ID else drawn)


def _advance_by_guesses(
    state: RequestState, entry: PlanEntry, drawn: tuple[int, ...]
) -> TokenUpdate:
    reason, num_kept = NOT_FINISHED, 0
    num_known, num_drafts = len(state.tokens), len(drawn) - 1
    for index, token in enumerate(drawn):
        reason = state.accept(token)
        if reason is not NOT_FINISHED or index == num_drafts:
            break
        if token != entry.tokens[index - num_drafts]:
            break
        num_kept += 1
    state.num_computed += num_kept
    state.metrics.num_accepted_draft_tokens += num_kept
    return state.tell(reason, tuple(state.tokens[num_known:]))
