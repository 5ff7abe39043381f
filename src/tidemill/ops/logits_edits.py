"""Edits of one row of logits before a token is drawn: biases, penalties, bans, guided masks.

In: raw logits and a `LogitsEdits`. Out: the logits that temperature, top-k and top-p see. Edits
are a small program, run in order, so that who writes it decides what comes before what:
    x = x + bias                                               the whole row, where there is a bias
    x[t] = x[t] + add; x[t] = x[t] * factor if x[t] < 0 else x[t] / factor; x[t] = x[t] - subtract
    x = x where allowed, else -infinity                        the whole row, where there is a mask
The middle line is one record; a token may have several. float32, in the kernel bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tidemill.ir.storage import FloatArray


@dataclass(frozen=True)
class LogitsEdits:
    """What happens to one row. Shapes: `bias` and `allowed` have an element for each token."""

    bias: FloatArray | None = None
    records: tuple[tuple[int, float, float, float], ...] = ()
    allowed: npt.NDArray[np.bool_] | None = None

    def apply(self, logits_V: FloatArray) -> FloatArray:
        """Return the edited row."""
        edited_V: FloatArray = logits_V.copy()
        of = logits_V.dtype.type
        if self.bias is not None:
            edited_V += self.bias
        for token, add, factor, subtract in self.records:
            x = edited_V[token] + of(add)
            edited_V[token] = (x * of(factor) if x < 0 else x / of(factor)) - of(subtract)
        if self.allowed is not None:
            edited_V[~self.allowed] = -np.inf
        return edited_V
