"""What a request has said so far, for those whose next token depends on it.

Only requests with rules, guides or wishes have one; the state of a request shares its lists with
it, so that nobody copies. The executor keeps what it derives from a history for as long as the
history lives.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tidemill.runtime.request import Request


@dataclass(frozen=True, eq=False)
class TokenHistory:
    """A request and the live list of tokens drawn for it. Compared and hashed by identity."""

    request: Request
    output_tokens: list[int] = field(default_factory=list)
