"""What a caller may ask of an answer, in the words of TensorRT-LLM's `SamplingParams`.

Checked when made, so that a wrong value is told where it was written. Knows nothing of engines:
limits that depend on one are checked when the request is made. docs/SAMPLING.md has every rule.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from json import dumps

from tidemill.base.errors import InvalidRequestError
from tidemill.host.beam_search import BeamSettings
from tidemill.host.logits_processors import register_processor
from tidemill.host.messages import GenerateRequest
from tidemill.host.sampling_rules import resolve_sampling
from tidemill.runtime.choice_hooks import LogitsProcessor
from tidemill.runtime.logits_rules import NO_NGRAM_BAN, LogitsRules
from tidemill.runtime.observation import OutputWishes
from tidemill.runtime.validate_request import sampling_faults, wishes_faults


@dataclass(frozen=True)
class GuidedDecodingParams:
    """What an answer must follow: exactly one of these. `json` is a schema, as text or parsed.

    Raises: InvalidRequestError.
    """

    json: str | Mapping[str, object] | None = None
    regex: str | None = None
    grammar: str | None = None
    json_object: bool = False

    def __post_init__(self) -> None:
        given = (self.json is not None, self.regex is not None, self.grammar is not None)
        if sum(given) + self.json_object != 1:
            raise InvalidRequestError(
                "guided decoding takes one guide",
                where="GuidedDecodingParams",
                expected="exactly one of json, regex, grammar and json_object",
                got=f"{sum(given) + self.json_object} of them",
                hint="keep one of them; for an answer without a guide leave guided_decoding out",
            )

    @property
    def guide(self) -> tuple[str, str]:
        """The kind of guide and its text."""
        if self.json is not None:
            schema = self.json if isinstance(self.json, str) else dumps(self.json)
            return ("json_schema", schema)
        if self.regex is not None:
            return ("regex", self.regex)
        return ("json", "") if self.grammar is None else ("ebnf_grammar", self.grammar)


@dataclass(frozen=True)
class SamplingParams:
    """How long an answer may be, how its tokens are chosen and where it stops.

    Greedy when `temperature`, `top_k` and `top_p` are all left out, and with temperature 0,
    top_k 1 or top_p 0; what is left out beside others is neutral. `end_id` None is the model's
    own. `max_tokens` None is as many as fit. `stop` and `bad` are texts, `stop_token_ids` and
    `bad_token_ids` tokens, or words of several tokens. Of `best_of` answers the best `n` come back,
    or `n` of as many beams. Of a prompt the last `truncate_prompt_tokens` count. `pad_id` changes
    nothing: nothing is padded. The last five are the reference's, and must ask for nothing.
    Raises: InvalidRequestError.
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
    min_p: float | None = None
    top_p_min: float | None = None
    top_p_decay: float | None = None
    top_p_reset_ids: int | None = None
    min_tokens: int | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    prompt_ignore_length: int | None = None
    no_repeat_ngram_size: int | None = None
    bad: str | Sequence[str] | None = None
    bad_token_ids: Sequence[int | Sequence[int]] | None = None
    embedding_bias: Sequence[float] | None = None
    logit_bias: Mapping[int, float] | None = None
    stop_token_ids: Sequence[int | Sequence[int]] | None = None

    logprobs: int | None = None
    prompt_logprobs: int | None = None
    return_context_logits: bool = False
    return_generation_logits: bool = False

    n: int = 1
    best_of: int | None = None
    use_beam_search: bool = False
    length_penalty: float | None = None
    early_stopping: int | None = None
    beam_search_diversity_rate: float | None = None
    guided_decoding: GuidedDecodingParams | None = None
    logits_processor: LogitsProcessor | str | None = None
    return_perf_metrics: bool = False
    detokenize: bool = True
    truncate_prompt_tokens: int | None = None
    pad_id: int | None = None
    spaces_between_special_tokens: bool = True
    apply_batched_logits_processor: bool = False
    beam_width_array: Sequence[int] | None = None
    lookahead_config: object = None
    additional_model_outputs: Sequence[object] | None = None
    return_encoder_output: bool = False

    def __post_init__(self) -> None:
        _refuse_unknown_wishes(self)
        faults = sampling_faults(
            resolve_sampling(
                self.temperature, self.top_k, self.top_p, self.seed, self.min_p, self.rules
            )
        )
        if self.max_tokens is not None and self.max_tokens < 1:
            faults.append(f"require max_tokens > 0, got max_tokens={self.max_tokens}")
        if self.truncate_prompt_tokens is not None and self.truncate_prompt_tokens < 1:
            faults.append(
                "require truncate_prompt_tokens >= 1,"
                f" got truncate_prompt_tokens={self.truncate_prompt_tokens}"
            )
        faults += wishes_faults(self.wishes)
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
        return _texts(self.stop)

    @property
    def beams(self) -> BeamSettings | None:
        """How beams are searched; as many as `best_of` says, or `n`."""
        if not self.use_beam_search:
            return None
        given = {
            "length_penalty": self.length_penalty,
            "early_stopping": self.early_stopping,
            "diversity_rate": self.beam_search_diversity_rate,
        }
        chosen = {name: value for name, value in given.items() if value is not None}
        width = self.n if self.best_of is None else self.best_of
        return BeamSettings(width, **chosen)  # type: ignore[arg-type]

    @property
    def wishes(self) -> OutputWishes:
        """What to tell beside tokens and text."""
        return OutputWishes(
            self.logprobs,
            self.prompt_logprobs,
            self.return_context_logits,
            self.return_generation_logits,
        )

    @property
    def rules(self) -> LogitsRules:
        """The rules by which logits are edited; what was left out is neutral."""
        given = {
            "repetition_penalty": self.repetition_penalty,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "prompt_ignore_length": self.prompt_ignore_length,
            "min_tokens": self.min_tokens,
            "no_repeat_ngram_size": self.no_repeat_ngram_size or NO_NGRAM_BAN,
            "bad_words": _words(self.bad_token_ids),
            "embedding_bias": as_bias(self.embedding_bias),
            "logit_bias": tuple((self.logit_bias or {}).items()),
            "top_p_min": self.top_p_min,
            "top_p_decay": self.top_p_decay,
            "top_p_reset_ids": self.top_p_reset_ids,
        }
        return LogitsRules(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]


def make_request(
    params: SamplingParams,
    request_id: str,
    prompt: str | None,
    prompt_tokens: list[int],
    is_streaming: bool,
) -> GenerateRequest:
    """Ask for an answer to a prompt."""
    rules = params.rules
    return GenerateRequest(
        request_id=request_id,
        prompt=prompt,
        prompt_tokens=prompt_tokens,
        max_tokens=params.max_tokens,
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        seed=params.seed,
        end_id=-1 if params.ignore_eos else params.end_id,
        min_p=params.min_p,
        n=params.n,
        best_of=None if params.use_beam_search else params.best_of,
        beams=params.beams,
        guide=None if params.guided_decoding is None else params.guided_decoding.guide,
        processor=_processor_name(params.logits_processor),
        wishes=None if params.wishes.is_empty else params.wishes,
        rules=None if rules.is_neutral else rules,
        bad_words=_texts(params.bad),
        stop=params.stop_strings,
        stop_token_words=[list(word) for word in _words(params.stop_token_ids)],
        include_stop_in_output=params.include_stop_str_in_output,
        exclude_input_in_output=params.exclude_input_from_output,
        streaming=is_streaming,
        skip_special_tokens=params.skip_special_tokens,
        return_perf_metrics=params.return_perf_metrics,
        detokenize=params.detokenize,
    )


def _refuse_unknown_wishes(params: SamplingParams) -> None:
    wishes: dict[str, object] = {
        "spaces_between_special_tokens=False": not params.spaces_between_special_tokens,
        "apply_batched_logits_processor": params.apply_batched_logits_processor,
        "beam_width_array": params.beam_width_array,
        "lookahead_config": params.lookahead_config,
        "additional_model_outputs": params.additional_model_outputs,
        "return_encoder_output": params.return_encoder_output,
    }
    asked = [name for name, wish in wishes.items() if wish]
    if asked:
        raise InvalidRequestError(
            "the answer is to have what this version cannot give",
            where="SamplingParams",
            expected="none of " + ", ".join(wishes),
            got=", ".join(asked),
            hint="leave it out; docs/SAMPLING.md has what can be asked for",
        )


def _processor_name(processor: LogitsProcessor | str | None) -> str | None:
    if processor is None or isinstance(processor, str):
        return processor
    return register_processor(processor)


def as_bias(values: Sequence[float] | None) -> bytes | None:
    """Return a value for each token as native float32, the form of `LogitsRules`."""
    return None if values is None else array("f", values).tobytes()


def _texts(given: str | Sequence[str] | None) -> list[str]:
    if given is None:
        return []
    return [given] if isinstance(given, str) else list(given)


def _words(given: Sequence[int | Sequence[int]] | None) -> tuple[tuple[int, ...], ...]:
    """Words of tokens; a bare token is a word of one."""
    return tuple((word,) if isinstance(word, int) else tuple(word) for word in given or ())
