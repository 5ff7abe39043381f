"""What each quantisation scheme may cost, and what it did cost when it was measured: one table.

docs/ACCURACY.md shows it (a test holds the two together), tests/e2e/test_scheme_accuracy.py
measures it: the sample model on a fixed text, against its bfloat16 engine. A bound is about twice
what was measured; a scheme without a row fails, and so does one that loses more than its bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Loss:
    """Rms error of the logits over their rms; relative change of perplexity; agreement.

    `same_first` is the share of positions whose largest logit is the same token's.
    """

    rms: float
    max_rms: float
    perplexity: float
    max_perplexity: float
    same_first: float

    def row(self, scheme: str) -> str:
        """The scheme's row of the document's table."""
        return (
            f"| {scheme} | {self.rms:.1e} | {self.max_rms:.1e} | {self.perplexity:+.1%} | "
            f"{self.max_perplexity:.0%} | {self.same_first:.1%} |"
        )


# Groups of 128 do not divide the sample's 576 inputs: their kernels have their own tests.
NOT_ON_THE_SAMPLE = ("w4a16_g128", "w4a8_g128", "w4a16_g128_sym", "w4a8_g128_sym")

CACHES = ("kv_int8", "kv_fp8")  # a quantised key-value cache beside plain weights


def build_flags(scheme: str) -> dict[str, Any]:
    """What build is told for a row of the table."""
    if scheme in CACHES:
        return {"kv_cache_dtype": scheme.removeprefix("kv_")}
    return {"quant": scheme}


LOSSES: dict[str, Loss] = {
    "w8a16": Loss(0.039, 0.08, -0.001, 0.01, 0.955),
    "w8a8": Loss(0.117, 0.25, 0.014, 0.04, 0.860),
    "fp8": Loss(0.090, 0.18, 0.039, 0.08, 0.897),
    "w4a16_g32": Loss(0.016, 0.04, 0.000, 0.01, 0.966),
    "w4a8_g32": Loss(0.122, 0.27, 0.019, 0.05, 0.842),
    "w4a16_g64": Loss(0.320, 0.65, 0.388, 0.70, 0.699),
    "w4a8_g64": Loss(0.341, 0.70, 0.431, 0.75, 0.682),
    "w4a16_g32_sym": Loss(0.505, 1.0, 0.343, 0.70, 0.654),
    "w4a8_g32_sym": Loss(0.575, 1.0, 0.427, 0.75, 0.640),
    "w4a16_g64_sym": Loss(0.508, 1.0, 0.284, 0.70, 0.644),
    "w4a8_g64_sym": Loss(0.548, 1.0, 0.336, 0.70, 0.623),
    "kv_int8": Loss(0.016, 0.04, -0.0003, 0.01, 0.969),
    "kv_fp8": Loss(0.043, 0.1, -0.0074, 0.02, 0.945),
}
HEADER = (
    "| scheme | logits rms | bound | perplexity | bound | same first |\n|---|---|---|---|---|---|"
)


def table() -> str:
    """The table as docs/ACCURACY.md has it."""
    return "\n".join([HEADER, *(loss.row(scheme) for scheme, loss in LOSSES.items())])
