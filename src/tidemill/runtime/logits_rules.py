"""The rules by which a request's logits are edited before a token is drawn, as values.

Names and defaults are TensorRT-LLM's; every default is neutral. Order and meaning of each stand
in docs/SAMPLING.md. Knows nothing of how they are applied: that is the executor's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

NO_NGRAM_BAN = 1 << 30


@dataclass(frozen=True)
class LogitsRules:
    """Penalties, bans and biases of one request.

    `embedding_bias` holds native float32 values, one for each token of the vocabulary; `logit_bias`
    pairs of token and value. The first `prompt_ignore_length` tokens of the prompt do not count
    for the presence and frequency penalties. Before `min_tokens` tokens the end tokens are banned.
    """

    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    prompt_ignore_length: int = 0
    min_tokens: int = 0
    no_repeat_ngram_size: int = NO_NGRAM_BAN
    bad_words: tuple[tuple[int, ...], ...] = ()
    embedding_bias: bytes | None = field(default=None, repr=False)
    logit_bias: tuple[tuple[int, float], ...] = ()
    top_p_min: float = 1e-6
    top_p_decay: float = 1.0
    top_p_reset_ids: int = 1

    @property
    def has_penalties(self) -> bool:
        """Whether tokens of the past weigh on the next one."""
        penalties = (self.presence_penalty, self.frequency_penalty)
        return self.repetition_penalty != 1.0 or penalties != (0.0, 0.0)

    @property
    def is_neutral(self) -> bool:
        """Whether nothing would ever be edited, and nothing is wrong either."""
        return not (
            rules_faults(self)
            or self.has_penalties
            or self.min_tokens > 0
            or self.bans_ngrams
            or self.bad_words
            or self.embedding_bias is not None
            or self.logit_bias
            or self.top_p_decay != 1.0
        )

    @property
    def bans_ngrams(self) -> bool:
        return 0 < self.no_repeat_ngram_size < NO_NGRAM_BAN


def rules_faults(rules: LogitsRules) -> list[str]:
    """List what is wrong with the values of rules, in TensorRT-LLM's words."""
    faults: list[str] = []
    if not (rules.repetition_penalty > 0 and math.isfinite(rules.repetition_penalty)):
        faults.append(
            f"require repetition_penalty > 0, got repetition_penalty={rules.repetition_penalty}"
        )
    finite = {
        "presence_penalty": rules.presence_penalty,
        "frequency_penalty": rules.frequency_penalty,
    }
    counts = {
        "min_tokens": rules.min_tokens,
        "no_repeat_ngram_size": rules.no_repeat_ngram_size,
        "prompt_ignore_length": rules.prompt_ignore_length,
    }
    shares = {"top_p_min": rules.top_p_min, "top_p_decay": rules.top_p_decay}
    faults += [
        f"require a finite {name}, got {name}={value}"
        for name, value in finite.items()
        if not math.isfinite(value)
    ]
    faults += [
        f"require {name} >= 0, got {name}={value}" for name, value in counts.items() if value < 0
    ]
    faults += [
        f"require 0 < {name} <= 1, got {name}={value}"
        for name, value in shares.items()
        if not 0 < value <= 1
    ]
    if not all(rules.bad_words):
        faults.append("require bad words of at least one token, got an empty one")
    biases = [bias for _, bias in rules.logit_bias]
    if any(math.isnan(bias) or bias == math.inf for bias in biases):
        faults.append(f"require logit_bias below infinity, got logit_bias={rules.logit_bias}")
    return faults
