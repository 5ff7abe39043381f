"""What a request may bring along to steer its tokens: a guide, a logits processor.

The runtime knows their interfaces only; grammars and user code live above it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

# Called with request id, logits of shape (1, 1, vocabulary) to be changed in place, [all tokens so
# far], None and None: TensorRT-LLM's LogitsProcessor, on the host's memory, so without a stream.
LogitsProcessor = Callable[[int, Any, Sequence[Sequence[int]], None, None], None]


class TokenGuide(Protocol):
    """Follows one answer and says which tokens may come next."""

    def allowed(self) -> bytes:
        """Return a bit for each token in words of 32, set where the token may come next."""
        ...

    def copy(self) -> TokenGuide:
        """Return a guide of its own at the same place."""
        ...

    def take(self, token: int) -> None:
        """Follow a token of the answer."""
        ...
