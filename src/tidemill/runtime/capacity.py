"""The three capacity policies: which requests may be active together.

In come the active requests and the queue; each policy admits from the queue (and pauses into it,
where that is its way) before a step is filled. Knows nothing of tokens in a step.

Source: TensorRT-LLM's capacity scheduler; we differ where docs/RUNTIME.md says so.
"""

from __future__ import annotations

from collections.abc import Callable

from tidemill.runtime.active_requests import ActiveRequests, Admission
from tidemill.runtime.config import CapacityPolicy
from tidemill.runtime.request_queue import RequestQueue
from tidemill.runtime.request_state import RequestState

Policy = Callable[[ActiveRequests, RequestQueue], None]


def guaranteed_no_evict(active: ActiveRequests, queue: RequestQueue) -> None:
    """Admit in order, each request with room for its whole life; none is ever paused."""
    _admit_for_life(active, queue, may_wait=True)


def static_batch(active: ActiveRequests, queue: RequestQueue) -> None:
    """Admit a new batch when the last request of the one before has ended."""
    if not len(active):
        _admit_for_life(active, queue, may_wait=False)


def max_utilization(active: ActiveRequests, queue: RequestQueue) -> None:
    """Admit whoever's known tokens fit now; when blocks run out, pause the last in order."""
    _make_running_fit(active, queue)
    index = 0
    while index < len(queue):
        state = queue[index]
        outcome = active.try_admit(state, len(state.tokens))
        if outcome is Admission.NO_ROOM and _displace(active, queue, state):
            continue
        if outcome is Admission.NO_ROOM:
            return
        if outcome is Admission.ADMITTED:
            queue.remove(state)
        else:
            index += 1


POLICIES: dict[CapacityPolicy, Policy] = {
    CapacityPolicy.GUARANTEED_NO_EVICT: guaranteed_no_evict,
    CapacityPolicy.MAX_UTILIZATION: max_utilization,
    CapacityPolicy.STATIC_BATCH: static_batch,
}


def _admit_for_life(active: ActiveRequests, queue: RequestQueue, may_wait: bool) -> None:
    index = 0
    while index < len(queue) and not active.is_full:
        state = queue[index]
        outcome = active.try_admit(state, state.max_tokens, may_wait)
        if outcome is Admission.NO_ROOM:
            return
        if outcome is Admission.ADMITTED:
            queue.remove(state)
        else:
            index += 1


def _make_running_fit(active: ActiveRequests, queue: RequestQueue) -> None:
    running = active.in_order()
    index = 0
    # The first in order never needs more than pausing all others gives: validated at the door.
    while index < len(running):
        state = running[index]
        if active.pool.promise(state.table, len(state.tokens)):
            index += 1
        else:
            _pause(active, queue, running.pop())


def _displace(active: ActiveRequests, queue: RequestQueue, state: RequestState) -> bool:
    """Pause the last active request of lower priority, if pausing all of them makes room."""
    lower = [each for each in active.in_order() if each.request.priority < state.request.priority]
    if not lower:
        return False
    num_freed = sum(active.pool.num_sole(each.table) for each in lower)
    num_missing = active.num_needed(state, len(state.tokens)) - active.pool.num_available
    if num_freed < num_missing:
        return False
    _pause(active, queue, lower[-1])
    return True


def _pause(active: ActiveRequests, queue: RequestQueue, state: RequestState) -> None:
    active.leave([state])
    active.paused.append(state)
    state.metrics.num_pauses += 1
    queue.add(state)
