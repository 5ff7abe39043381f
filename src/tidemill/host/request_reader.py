"""Reads what a client wrote into what the runtime computes.

In comes a `GenerateRequest`, out go the runtime's `Request` in tokens and the maker of the
`AnswerText` that will turn its tokens back into text. What was left open is filled in here, from
the model's tokenizer and the engine's limits. Knows nothing of steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from tidemill.base.errors import InvalidRequestError
from tidemill.host.answer_text import AnswerText
from tidemill.host.engine_tokenizer import TOKENIZER_FILE
from tidemill.host.jobs import Reading, check_numbers, check_together
from tidemill.host.logits_processors import find_processor
from tidemill.host.messages import GenerateRequest
from tidemill.host.sampling_rules import resolve_sampling
from tidemill.runtime.logits_rules import LogitsRules
from tidemill.runtime.request import Request
from tidemill.runtime.step import EngineLimits
from tidemill.runtime.validate_request import most_tokens
from tidemill.text.guide import Guide, GuideMaker
from tidemill.text.text_length import check_side_texts, is_far_longer
from tidemill.text.tokenizer import Tokenizer


class RequestReader:
    """Reads requests for one engine."""

    def __init__(
        self, tokenizer: Callable[[], Tokenizer | None], limits: EngineLimits, engine_dir: str
    ) -> None:
        """Read for an engine; `tokenizer` is called for requests that need one."""
        self._find_tokenizer = tokenizer
        self._limits = limits
        self._engine_dir = engine_dir
        self._guides: GuideMaker | None = None

    def read(self, request: GenerateRequest, numbers: Iterator[int]) -> Reading:
        """Tokenise the prompt and settle what was left open; `numbers` are the runtime's ids.

        Raises: InvalidRequestError when there is no prompt that this engine can read, or when its
        wishes contradict each other.
        """
        faults = check_numbers(request)
        text, tokens = self._prompt(request)
        echo = ""
        if not (request.exclude_input_in_output or request.streaming):
            echo = self._echo(request, text, tokens)
        computed = Request(
            -1,
            tokens,
            max_new_tokens=self._max_new_tokens(request, len(tokens)),
            sampling=resolve_sampling(
                request.temperature,
                request.top_k,
                request.top_p,
                request.seed,
                request.min_p,
                self._rules(request),
            ),
            end_ids=self._end_ids_of(request),
            stop_words=tuple(map(tuple, request.stop_token_words)),
            wishes=request.wishes,
            guide=self._guide(request),
            processor=find_processor(request.processor) if request.processor else None,
            client_id=request.request_id,
            priority=request.priority,
            allotted_time_ms=request.allotted_time_ms,
            cache_salt=request.cache_salt,
            retention=request.retention,
            is_speculative=request.speculation,
        )
        faults += check_together(request, computed)
        if faults:
            raise InvalidRequestError(
                "; ".join(faults),
                where=f"request {request.request_id}",
                expected="numbers within their bounds, and wishes that go together",
                got=f"n {request.n}, best_of {request.best_of}, beams {request.beams}",
                hint="correct what is named above, or ask for it in requests of their own",
            )

        def make_answer() -> AnswerText:
            # Stop strings are looked for in text, whether it is told or not.
            is_text = request.detokenize or bool(request.stop)
            tokenizer = self._find_tokenizer() if is_text else None
            return AnswerText(request, tokenizer, len(tokens), echo)

        return Reading(request, computed, make_answer, numbers)

    def _guide(self, request: GenerateRequest) -> Guide | None:
        if request.guide is None:
            return None
        tokenizer = self._tokenizer_for(request)
        check_side_texts("guide", [request.guide[1]])
        if self._guides is None:
            self._guides = GuideMaker(tokenizer, self._limits.vocab_size)
        return self._guides.make(*request.guide)

    def _rules(self, request: GenerateRequest) -> LogitsRules | None:
        """The request's rules, with the words that were given as text in tokens."""
        if not (request.bad_words or request.bias_words):
            return request.rules
        tokenizer = self._tokenizer_for(request)
        words = [*request.bad_words, *(word for word, _ in request.bias_words)]
        check_side_texts("bad_words, embedding_bias_words", words)
        rules = request.rules or LogitsRules()
        bad = [form for word in request.bad_words for form in word_forms(tokenizer, word)]
        biases = [
            (token, bias)
            for word, bias in request.bias_words
            for token in encode_prompt(tokenizer, word, adds_special=False)
        ]
        return replace(
            rules,
            bad_words=rules.bad_words + tuple(bad),
            logit_bias=rules.logit_bias + tuple(biases),
        )

    def _prompt(self, request: GenerateRequest) -> tuple[str | None, tuple[int, ...]]:
        if request.prompt_tokens is not None:
            return request.prompt, tuple(request.prompt_tokens)
        tokenizer = self._tokenizer_for(request)
        if request.prompt is not None:
            text, adds_special = request.prompt, request.add_special_tokens
        elif request.messages is not None:
            # The template has written the special tokens.
            text, adds_special = tokenizer.apply_chat_template(request.messages), False
        else:
            raise InvalidRequestError(
                "the request has no prompt",
                where=f"request {request.request_id}",
                expected="one of prompt, prompt_tokens or messages",
                got="none",
                hint="set one of them; an empty prompt counts as none",
            )
        max_tokens = self._limits.max_input_len
        return text, tuple(encode_prompt(tokenizer, text, adds_special, max_tokens))

    def _echo(self, request: GenerateRequest, text: str | None, tokens: tuple[int, ...]) -> str:
        tokenizer = self._find_tokenizer() if text is None else None
        if tokenizer is None:
            return text or ""
        return tokenizer.decode(tokens, request.skip_special_tokens)

    def _tokenizer_for(self, request: GenerateRequest) -> Tokenizer:
        tokenizer = self._find_tokenizer()
        if tokenizer is None:
            raise InvalidRequestError(
                "the request is text, and the engine has no tokenizer",
                where=f"request {request.request_id}",
                expected=f"{TOKENIZER_FILE} in the engine directory {self._engine_dir}",
                got="no such file",
                hint="send prompt_tokens, or copy the model's tokenizer files there",
            )
        return tokenizer

    def _max_new_tokens(self, request: GenerateRequest, num_prompt: int) -> int:
        if request.max_tokens is not None:
            return request.max_tokens
        return max(1, most_tokens(self._limits) - num_prompt)

    def _end_ids_of(self, request: GenerateRequest) -> tuple[int, ...]:
        if request.end_id is None:
            tokenizer = self._find_tokenizer()
            return tokenizer.eos_token_ids if tokenizer else ()
        return () if request.end_id < 0 else (request.end_id,)


def word_forms(tokenizer: Tokenizer, word: str) -> list[tuple[int, ...]]:
    """Return a bad word's tokens as they stand at a beginning and after a space."""
    forms = (
        tuple(encode_prompt(tokenizer, text, adds_special=False)) for text in (word, f" {word}")
    )
    return [form for form in dict.fromkeys(forms) if form]


def encode_prompt(
    tokenizer: Tokenizer, text: str, adds_special: bool, max_tokens: int | None = None
) -> list[int]:
    """Turn a prompt's text into tokens.

    Raises: InvalidRequestError when it is no valid text, or so long that reading it all would
    only keep others waiting.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequestError(
            "the prompt is no valid text",
            where="prompt",
            expected="Unicode characters",
            got=f"half a surrogate pair at character {error.start}",
            hint="decode the bytes as UTF-8 before they are sent",
        ) from error
    if max_tokens is not None and is_far_longer(tokenizer, text, max_tokens):
        raise InvalidRequestError(
            f"prompt length exceeds maximum input length ({max_tokens})",
            where="prompt",
            expected=f"at most {max_tokens} tokens",
            got=f"{len(text)} characters",
            hint="shorten the prompt, or build the engine with a larger --max_input_len",
        )
    return tokenizer.encode(text, adds_special)
