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
    """Rms error of the logits over their rms; agreement; relative change of perplexity.

    `same_first` is the share of positions whose largest logit is the same token's. Perplexity is
    None on random weights, where it says nothing.
    """

    rms: float
    max_rms: float
    same_first: float
    perplexity: float | None = None
    max_perplexity: float | None = None

    def row(self, scheme: str) -> str:
        """The scheme's row of the document's table."""
        change = "-" if self.perplexity is None else f"{self.perplexity:+.1%}"
        bound = "-" if self.max_perplexity is None else f"{self.max_perplexity:.0%}"
        return (
            f"| {scheme} | {self.rms:.1e} | {self.max_rms:.1e} | {change} | {bound} | "
            f"{self.same_first:.1%} |"
        )


# Groups of 128 do not divide the sample's 576 inputs: these run on a small random Llama.
ON_RANDOM_WEIGHTS = ("w4a16_g128", "w4a8_g128", "w4a16_g128_sym", "w4a8_g128_sym")

CACHES = ("kv_int8", "kv_fp8")  # a quantised key-value cache beside plain weights

# Layers and head with schemes of their own: --quant, --quant_head.
APART = {
    "head_w8a16": ("none", "w8a16"),
    "head_w8a8": ("none", "w8a8"),
    "head_fp8": ("none", "fp8"),
    "head_w4a16_g32": ("none", "w4a16_g32"),
    "head_w4a8_g32": ("none", "w4a8_g32"),
    "w4a8_g32_whole": ("w4a8_g32", "w4a8_g32"),
    "w8a8_plain_head": ("w8a8", "none"),
}


def build_flags(scheme: str) -> dict[str, Any]:
    """What build is told for a row of the table."""
    if scheme in CACHES:
        return {"kv_cache_dtype": scheme.removeprefix("kv_")}
    if scheme in APART:
        return dict(zip(("quant", "quant_head"), APART[scheme], strict=True))
    return {"quant": scheme}


LOSSES: dict[str, Loss] = {
    "w12a16": Loss(0.0, 0.0, 1.0, 0.0, 0.0),
    "w8a16": Loss(0.033, 0.07, 0.956, 0.004, 0.01),
    "w8a8": Loss(0.107, 0.22, 0.877, 0.031, 0.06),
    "fp8": Loss(0.079, 0.16, 0.898, 0.027, 0.06),
    "w4a16_g32": Loss(0.014, 0.03, 0.971, 0.002, 0.01),
    "w4a8_g32": Loss(0.105, 0.22, 0.870, 0.036, 0.07),
    "w4a16_g64": Loss(0.293, 0.6, 0.698, 0.254, 0.50),
    "w4a8_g64": Loss(0.325, 0.65, 0.670, 0.303, 0.60),
    "w4a16_g128": Loss(0.316, 0.65, 0.526),
    "w4a8_g128": Loss(0.318, 0.65, 0.521),
    "w4a16_g32_sym": Loss(0.474, 0.95, 0.693, 0.193, 0.40),
    "w4a8_g32_sym": Loss(0.538, 1.0, 0.670, 0.233, 0.45),
    "w4a16_g64_sym": Loss(0.514, 1.0, 0.654, 0.225, 0.45),
    "w4a8_g64_sym": Loss(0.538, 1.0, 0.635, 0.27, 0.55),
    "w4a16_g128_sym": Loss(0.329, 0.65, 0.539),
    "w4a8_g128_sym": Loss(0.33, 0.65, 0.542),
    "head_w8a16": Loss(0.0135, 0.03, 0.973, 0.002, 0.01),
    "head_w8a8": Loss(0.027, 0.055, 0.933, 0.009, 0.02),
    "head_fp8": Loss(0.043, 0.09, 0.923, 0.016, 0.03),
    "head_w4a16_g32": Loss(0.089, 0.18, 0.802, 0.089, 0.18),
    "head_w4a8_g32": Loss(0.092, 0.19, 0.8, 0.097, 0.20),
    "w4a8_g32_whole": Loss(0.14, 0.28, 0.773, 0.119, 0.24),
    "w8a8_plain_head": Loss(0.108, 0.22, 0.885, 0.028, 0.06),
    "kv_int8": Loss(0.016, 0.04, 0.977, 0.0002, 0.01),
    "kv_fp8": Loss(0.037, 0.08, 0.956, 0.003, 0.01),
}
HEADER = (
    "| scheme | logits rms | bound | perplexity | bound | same first |\n|---|---|---|---|---|---|"
)


def table() -> str:
    """The table as docs/ACCURACY.md has it."""
    return "\n".join([HEADER, *(loss.row(scheme) for scheme, loss in LOSSES.items())])
