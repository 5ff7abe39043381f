"""What sampling values mean when some are left out: the rules of TensorRT-LLM's LLM API.

Nothing set is greedy; temperature 0, top_k 1 or top_p 0 is greedy; anything else set means
sampling, with temperature 1, all tokens and all mass for what is not. The seed is fixed unless
given. Source: TensorRT-LLM `SamplingParams._greedy_decoding`.
"""

from __future__ import annotations

from tidemill.runtime.logits_rules import LogitsRules
from tidemill.runtime.request import SamplingParams

GREEDY_TOP_K = 1


def resolve_sampling(
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    seed: int | None,
    min_p: float | None = None,
    rules: LogitsRules | None = None,
) -> SamplingParams:
    """Turn optional values into the runtime's; out-of-range values pass, to be refused there.

    A greedy choice uses neither seed nor min_p, yet keeps them: a wrong one is wrong there, too.
    """
    if rules is not None and rules.is_neutral:
        rules = None
    if temperature is None and top_k is None and top_p is None:
        top_k = GREEDY_TOP_K
    return SamplingParams(
        temperature=1.0 if temperature is None else temperature,
        top_k=0 if top_k is None else top_k,
        top_p=1.0 if top_p is None else top_p,
        seed=0 if seed is None else seed,
        min_p=0.0 if min_p is None else min_p,
        rules=rules,
    )
