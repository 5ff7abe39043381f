"""What a caller may ask of an answer, in the words of TensorRT-LLM's `SamplingParams`.

Checked when made, so that a wrong value is told where it was written. Knows nothing of engines:
limits that depend on one are checked when the request is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tidemill.base.errors import InvalidRequestError
from tidemill.host.messages import GenerateRequest
from tidemill.host.sampling_rules import resolve_sampling
from tidemill.runtime.validate_request import sampling_faults


@dataclass(frozen=True)
class SamplingParams:
    """How long an answer may be, how its tokens are chosen and where it stops.

    Greedy when `temperature`, `top_k` and `top_p` are all left out, and with temperature 0,
    top_k 1 or top_p 0; what is left out beside others is neutral. `end_id` None is the model's
    own. `max_tokens` None is as many as fit. Raises: InvalidRequestError.
    """

    max_tokens: int | None = 32
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: str | Sequence[str] | None = None
    include_stop_str_in_output: bool = False
    end_id: int | None = None
    ignore_eos: bool = False
    exclude_input_from_output: bool = True
    add_special_tokens: bool = True
    skip_special_tokens: bool = True

    def __post_init__(self) -> None:
        faults = sampling_faults(
            resolve_sampling(self.temperature, self.top_k, self.top_p, self.seed)
        )
        if self.max_tokens is not None and self.max_tokens < 1:
            faults.append(f"require max_tokens > 0, got max_tokens={self.max_tokens}")
        if not all(self.stop_strings):
            faults.append("require stop strings with at least one character, got ''")
        if faults:
            raise InvalidRequestError(
                "; ".join(faults),
                where="SamplingParams",
                expected="values within their ranges",
                got=f"{len(faults)} outside",
                hint="leave a value out for the model's default",
            )

    @property
    def stop_strings(self) -> list[str]:
        if self.stop is None:
            return []
        return [self.stop] if isinstance(self.stop, str) else list(self.stop)

    def to_request(
        self, request_id: str, prompt: str | None, prompt_tokens: list[int], is_streaming: bool
    ) -> GenerateRequest:
        """Ask for an answer to a prompt under these settings."""
        return GenerateRequest(
            request_id=request_id,
            prompt=prompt,
            prompt_tokens=prompt_tokens,
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            seed=self.seed,
            end_id=-1 if self.ignore_eos else self.end_id,
            stop=self.stop_strings,
            include_stop_in_output=self.include_stop_str_in_output,
            exclude_input_in_output=self.exclude_input_from_output,
            streaming=is_streaming,
            skip_special_tokens=self.skip_special_tokens,
        )
