"""Says what of a JSON body is out of bounds, without parsing it: depth, members, values.

Triton 2.51 parses recursively, and one body of 200,000 open brackets ends the server; it looks each
member of a `generate` body up by walking over all of them, and 100,000 stop it for half a minute;
20 million values in arrays take it four seconds, in which it hears nobody. All are counted outside
of strings, piece by piece in NumPy, which lets other threads run meanwhile: no body makes the
bounding itself expensive.
"""

from __future__ import annotations

MAX_MEMBERS = 4096
MAX_VALUES = 1 << 20
PIECE_BYTES = 1 << 20
QUOTE, COLON, COMMA = ord('"'), ord(":"), ord(",")

DEEPER = "the JSON body nests deeper than {} levels"
LONGER = "the JSON body has more than {} members"
FULLER = "the JSON body has more than {} values; tensors may follow it in binary form"
BROKEN = "the JSON body is cut off or its brackets do not match"


def find_excess(body: bytes, max_depth: int, max_members: int = MAX_MEMBERS) -> str | None:
    """Return in words what a body exceeds, or that it is no JSON; None when it may pass."""
    num_brackets = body.count(b"[") + body.count(b"{")
    is_short = num_brackets + body.count(b",") < MAX_VALUES and body.count(b":") <= max_members
    if is_short and num_brackets <= max_depth:
        return None
    import numpy as np  # costs serve 12 MB and a twentieth of a second, for bodies of this kind

    byte_to_step = np.zeros(256, dtype=np.int8)
    byte_to_step[[*b"[{"]], byte_to_step[[*b"]}"]] = 1, -1
    if b"\\" in body:
        # Escaped backslashes first, so that what is left before a quote escapes it.
        body = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    depth = num_members = num_values = 0
    is_in_string = np.uint8(0)
    for start in range(0, len(body), PIECE_BYTES):
        piece = np.frombuffer(body[start : start + PIECE_BYTES], dtype=np.uint8)
        quotes = (piece == QUOTE).view(np.uint8)
        is_inside = np.bitwise_xor.accumulate(quotes) ^ is_in_string
        is_in_string = is_inside[-1]
        is_outside = is_inside == 0
        steps = byte_to_step[piece] * is_outside
        depths = depth + np.cumsum(steps[steps != 0], dtype=np.int64)
        num_members += int(np.count_nonzero(is_outside & (piece == COLON)))
        if depths.size:
            depth = int(depths[-1])
            if depths.min() < 0:
                return BROKEN
            if depths.max() > max_depth:
                return DEEPER.format(max_depth)
        num_values += int(np.count_nonzero(is_outside & (piece == COMMA)))
        num_values += int(np.count_nonzero(steps > 0))
        if num_members > max_members:
            return LONGER.format(max_members)
        if num_values > MAX_VALUES:
            return FULLER.format(MAX_VALUES)
    return BROKEN if depth or is_in_string else None
