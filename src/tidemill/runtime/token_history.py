"""What a request has said so far, for those whose next token depends on it.

Only requests with rules, guides, processors or wishes have one; the state of a request shares its
list of tokens with it, so that nobody copies. The executor keeps what it derives from a history for
as long as the history lives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tidemill.runtime.request import Request


@dataclass(frozen=True, eq=False)
class TokenHistory:
    """A request and the live list of its prompt's and output's tokens. Compared by identity."""

    request: Request
    tokens: Sequence[int]

    @property
    def num_output(self) -> int:
        return len(self.tokens) - len(self.request.prompt_tokens)
