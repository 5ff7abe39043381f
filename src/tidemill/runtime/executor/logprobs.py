"""Log-probabilities of one row of raw logits, in float64: the sampled token and the likeliest ones.

In: a row and a token. Out: `TokenLogprobs`. Each row by itself, so that no neighbour changes a bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tidemill.runtime.observation import TokenLogprobs


def token_logprobs(logits_V: npt.NDArray[Any], token: int, num_top: int) -> TokenLogprobs:
    """Return the token's entry, then those of the `num_top` likeliest; ties by lower token.

    At most `num_top` + 1 entries: a token among the likeliest comes once, at the front.
    """
    x_V = logits_V.astype(np.float64)
    top = float(x_V.max())
    total = top + float(np.log(np.exp(x_V - top).sum()))
    entries = [(token, float(x_V[token]) - total, 1 + int((x_V > x_V[token]).sum()))]
    num_top = min(num_top, len(x_V))
    if num_top:
        edge = np.partition(x_V, len(x_V) - num_top)[len(x_V) - num_top]
        near = np.flatnonzero(x_V >= edge)
        likeliest = near[np.argsort(-x_V[near], kind="stable")][:num_top]
        for rank, other in enumerate(likeliest.tolist(), 1):
            if other != token:
                entries.append((other, float(x_V[other]) - total, rank))
    return tuple(entries)
