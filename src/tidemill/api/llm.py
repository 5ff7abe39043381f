"""`LLM`: an engine in this process, prompts in, answers out, whole or as they come.

    with LLM("./engine") as llm:
        print(llm.generate("What is gravity?")[0].outputs[0].text)

Names are those of TensorRT-LLM's LLM API. Answers to prompts given together are computed together.
Any thread may ask; whoever waits for an answer advances everybody's. Knows nothing of the host
process, whose clients are the servers' way to an engine.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from tidemill.api.outputs import (
    CompletionOutput,
    RequestOutput,
    TextUpdate,
    to_completion,
    to_logits,
    to_text_update,
)
from tidemill.api.retarget import ensure_native_code
from tidemill.api.sampling_params import GuidedDecodingParams, SamplingParams
from tidemill.api.shared_session import SharedSession
from tidemill.base.errors import InvalidRequestError, SessionError
from tidemill.host.config import SessionConfig
from tidemill.host.request_reader import encode_prompt
from tidemill.host.session import Session
from tidemill.runtime.step import EngineLimits
from tidemill.text.tokenizer import Tokenizer

__all__ = [
    "LLM",
    "CompletionOutput",
    "GuidedDecodingParams",
    "RequestOutput",
    "SamplingParams",
    "TextUpdate",
]

Prompt = str | Sequence[int]


@dataclass(frozen=True)
class _Asked:
    """A request that was started: its number, its prompt in both forms."""

    number: int
    prompt: str | None
    prompt_tokens: list[int]

    @property
    def request_id(self) -> str:
        return str(self.number)


class LLM:
    """A loaded engine. Close it, or use it as a context."""

    def __init__(
        self,
        engine_dir: Path | str,
        *,
        kv_cache_tokens: int | None = None,
        num_threads: int | None = None,
        tokenizer_dir: Path | str | None = None,
    ) -> None:
        """Load an engine, recompiled for this CPU if it was built for another.

        Its own tokenizer gives way to that of `tokenizer_dir`. Units: `kv_cache_tokens` is the
        size of the cache; None computes a modest one.
        Raises: EngineFormatError, EngineTargetError, CheckpointError, ConfigError.
        """
        ensure_native_code(engine_dir)
        self._own(
            Session.open(engine_dir, SessionConfig(kv_cache_tokens, num_threads), tokenizer_dir)
        )

    @classmethod
    def from_session(cls, session: Session) -> LLM:
        """Use a session that is open already; it is closed with this object."""
        llm = cls.__new__(cls)
        llm._own(session)
        return llm

    @property
    def tokenizer(self) -> Tokenizer:
        """The engine's tokenizer.

        Raises: SessionError when the engine has none.
        """
        if self._session.tokenizer is None:
            raise SessionError(
                "the engine has no tokenizer",
                where="engine of this LLM",
                expected="tokenizer.json in the engine directory",
                got="no such file",
                hint="give prompts as tokens, or copy the model's tokenizer files there",
            )
        return self._session.tokenizer

    @property
    def limits(self) -> EngineLimits:
        """The shapes the engine was built for."""
        return self._session.limits

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[RequestOutput]:
        """Answer prompts, given as texts or as tokens; answers come in the prompts' order.

        Raises: RequestError for the first prompt that cannot be served; the others are cancelled.
        """
        given = _as_list(prompts)
        asked: list[_Asked] = []
        try:
            for prompt, params in zip(given, _one_each(sampling_params, len(given)), strict=True):
                asked.append(self._ask(prompt, params, is_streaming=False))
            return [self._collect(each) for each in asked]
        finally:
            for each in asked:
                self._shared.forget(each.request_id)

    def generate_stream(
        self, prompt: Prompt, sampling_params: SamplingParams | None = None
    ) -> Iterator[TextUpdate]:
        """Answer one prompt piece by piece; leaving the iteration cancels what is left.

        Raises: RequestError when the prompt cannot be served.
        """
        asked = self._ask(prompt, sampling_params or SamplingParams(), is_streaming=True)
        try:
            for update in self._shared.updates(asked.request_id):
                yield to_text_update(update)
        finally:
            self._shared.forget(asked.request_id)

    def chat(
        self,
        messages: Sequence[Mapping[str, object]],
        sampling_params: SamplingParams | None = None,
    ) -> RequestOutput:
        """Answer a conversation through the model's chat template.

        Raises: RequestError when there is no template or it refuses the messages.
        """
        (output,) = self.generate([self.chat_tokens(messages)], sampling_params)
        return output

    def chat_tokens(self, messages: Sequence[Mapping[str, object]]) -> list[int]:
        """Write a conversation as prompt tokens; the template gives all special ones."""
        text = self.tokenizer.apply_chat_template(messages)
        return self.tokenizer.encode(text, add_special_tokens=False)

    def apply_chat_template(self, messages: Sequence[Mapping[str, object]]) -> str:
        """Write a conversation as the prompt's text; `chat_tokens` is the safer form."""
        return self.tokenizer.apply_chat_template(messages)

    def close(self) -> None:
        """Let go of the engine; nobody may be waiting for an answer."""
        self._shared.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _own(self, session: Session) -> None:
        self._session = session
        self._shared = SharedSession(session)
        self._next_number = itertools.count()

    def _ask(self, prompt: Prompt, params: SamplingParams, is_streaming: bool) -> _Asked:
        number = next(self._next_number)
        if isinstance(prompt, str):
            tokens = encode_prompt(self.tokenizer, prompt, params.add_special_tokens)
            asked = _Asked(number, prompt, tokens)
        else:
            asked = _Asked(number, None, list(prompt))
        request = params.to_request(
            asked.request_id, asked.prompt, asked.prompt_tokens, is_streaming
        )
        self._shared.start(request)
        return asked

    def _collect(self, asked: _Asked) -> RequestOutput:
        updates = sorted(self._shared.updates(asked.request_id), key=lambda each: each.index)
        context_logits = to_logits(updates[0].context_logits, len(asked.prompt_tokens))
        return RequestOutput(
            asked.number,
            asked.prompt,
            asked.prompt_tokens,
            [to_completion(update) for update in updates],
            context_logits=context_logits,
        )


def _as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    is_one = isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], int))
    return [cast(Prompt, prompts)] if is_one else list(cast(Sequence[Prompt], prompts))


def _one_each(
    params: SamplingParams | Sequence[SamplingParams] | None, num_prompts: int
) -> Sequence[SamplingParams]:
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * num_prompts
    if len(params) != num_prompts:
        raise InvalidRequestError(
            "prompts and sampling parameters do not match",
            where="generate",
            expected=f"{num_prompts} sampling parameters, or one for all",
            got=f"{len(params)}",
        )
    return params
