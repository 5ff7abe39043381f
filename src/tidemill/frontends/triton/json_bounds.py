"""Says whether a JSON body nests too deeply, without parsing it.

Triton 2.51 parses recursively: one body of 200,000 open brackets ends the server. Counting happens
in C, over the brackets that stand outside of strings; a body is never walked in Python, so that
bounding it cannot be made expensive.
"""

from __future__ import annotations

import re

STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
AS_ARRAYS = bytes.maketrans(b"{}", b"[]")
NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def is_too_deep(body: bytes, max_depth: int) -> bool:
    """Say whether more than `max_depth` arrays and objects of a body stand in one another.

    Brackets left open are too deep as well: such a body is no JSON.
    """
    if body.count(b"[") + body.count(b"{") <= max_depth:
        return False
    brackets = STRING.sub(b"", body).translate(AS_ARRAYS, NOT_BRACKETS)
    # Each round takes away the innermost level.
    for _ in range(max_depth):
        shorter = brackets.replace(b"[]", b"")
        if len(shorter) == len(brackets):
            break
        brackets = shorter
    return bool(brackets)
