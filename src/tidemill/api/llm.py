"""`LLM`: a model in this process, prompts in, answers out, whole or as they come.

    with LLM("./engine") as llm:
        print(llm.generate("What is gravity?").outputs[0].text)

Names are those of TensorRT-LLM's LLM API. Answers to prompts given together are computed together.
Any thread may ask; whoever waits for an answer advances everybody's. Knows nothing of the host
process, whose clients are the servers' way to an engine.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

from tidemill.api.background_stepper import BackgroundStepper
from tidemill.api.engine_cache import find_or_build
from tidemill.api.generation_result import AskedPrompt, GenerationResult
from tidemill.api.iteration_stats import StatsReader
from tidemill.api.llm_options import LlmOptions
from tidemill.api.open_session import open_session
from tidemill.api.outputs import (
    CompletionOutput,
    RequestOutput,
    TextUpdate,
    to_completion,
    to_logits,
    to_text_update,
)
from tidemill.api.prompts import (
    Prompt,
    Prompts,
    TokensPrompt,
    as_list,
    is_one,
    one_each,
    parts,
    read_prompt,
    tokenizer_of,
)
from tidemill.api.runtime_options import (
    CapacitySchedulerPolicy,
    ContextChunkingPolicy,
    KvCacheConfig,
    NGramDecodingConfig,
    SchedulerConfig,
    ServiceOptions,
)
from tidemill.api.sampling_params import GuidedDecodingParams, SamplingParams, make_request
from tidemill.api.shared_session import SharedSession
from tidemill.host.messages import GenerateRequest
from tidemill.host.session import Session
from tidemill.runtime.kvcache.retention import KvCacheRetention, TokenRangeRetention
from tidemill.runtime.step import EngineLimits
from tidemill.text.tokenizer import Tokenizer

__all__ = [
    "LLM",
    "CapacitySchedulerPolicy",
    "CompletionOutput",
    "ContextChunkingPolicy",
    "GenerationResult",
    "GuidedDecodingParams",
    "KvCacheConfig",
    "KvCacheRetention",
    "NGramDecodingConfig",
    "RequestOutput",
    "SamplingParams",
    "SchedulerConfig",
    "TextUpdate",
    "TokenRangeRetention",
    "TokensPrompt",
]

EachParams = SamplingParams | Sequence[SamplingParams] | None


class LLM:
    """A loaded engine. Shut it down, or use it as a context."""

    def __init__(self, model: Path | str, **options: Any) -> None:
        """Load an engine directory, recompiled if need be, or build and load one from a model.

        `model` is an engine directory, a Hugging Face directory or hub id, a GGUF file or a
        TensorRT-LLM checkpoint; `options` are the fields of `EngineOptions` and `LlmOptions`.
        What is built is kept.
        Raises: ConfigError, EngineFormatError, EngineTargetError, CheckpointError.
        """
        self._own(*_open(model, LlmOptions.from_keywords(options)))

    @classmethod
    def from_session(cls, session: Session) -> LLM:
        """Use a session that is open already; it is closed with this object."""
        llm = cls.__new__(cls)
        llm._own(session)
        return llm

    @property
    def tokenizer(self) -> Tokenizer:
        """The engine's tokenizer. Raises: SessionError when it has none."""
        return tokenizer_of(self._session)

    @property
    def limits(self) -> EngineLimits:
        """The shapes the engine was built for."""
        return self._session.limits

    @overload
    def generate(
        self, inputs: Prompt, sampling_params: SamplingParams | None = None, **service: Any
    ) -> RequestOutput: ...

    @overload
    def generate(
        self, inputs: Prompts, sampling_params: EachParams = None, **service: Any
    ) -> list[RequestOutput]: ...

    def generate(
        self, inputs: Prompt | Prompts, sampling_params: EachParams = None, **service: Any
    ) -> RequestOutput | list[RequestOutput]:
        """Answer one prompt, or a list of them with one answer for each, in their order.

        `service` are the fields of `ServiceOptions`.
        Raises: RequestError for the first prompt that cannot be served; the others are cancelled.
        """
        given, served = as_list(inputs), ServiceOptions(**service)
        asked: list[AskedPrompt] = []
        try:
            for prompt, params in zip(given, one_each(sampling_params, len(given)), strict=True):
                each, request = self._ask(prompt, params, served, False)
                asked.append(each)
                self._shared.start(request)
            outputs = [_collect(self._shared, each) for each in asked]
        finally:
            for each in asked:
                self._shared.forget(each.request_id)
        return outputs[0] if is_one(inputs) else outputs

    def generate_async(
        self,
        inputs: Prompt,
        sampling_params: SamplingParams | None = None,
        streaming: bool = False,
        **service: Any,
    ) -> GenerationResult:
        """Start answering one prompt and return at once; a fault of it comes with the result.

        `service` are the fields of `ServiceOptions`.
        """
        served = ServiceOptions(**service)
        asked, request = self._ask(inputs, sampling_params, served, streaming)
        result = GenerationResult(asked, self._stepper.forget)
        self._stepper.start(request, result)
        return result

    def generate_stream(
        self, prompt: Prompt, sampling_params: SamplingParams | None = None
    ) -> Iterator[TextUpdate]:
        """Answer one prompt piece by piece; leaving the iteration cancels what is left.

        Raises: RequestError when the prompt cannot be served.
        """
        asked, request = self._ask(prompt, sampling_params, ServiceOptions(), True)
        self._shared.start(request)
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
        return self.generate(self.chat_tokens(messages), sampling_params)

    def chat_tokens(self, messages: Sequence[Mapping[str, object]]) -> list[int]:
        """Write a conversation as prompt tokens; the template gives all special ones."""
        text = self.tokenizer.apply_chat_template(messages)
        return self.tokenizer.encode(text, add_special_tokens=False)

    def get_stats(self) -> list[dict[str, Any]]:
        """Tell the statistics of each iteration since the last call."""
        return self._stats.read()

    def get_request_events(self) -> list[dict[str, Any]]:
        """Tell what happened to requests since the last call; see `event_buffer_max_size`."""
        return self._stats.read_events()

    def get_stats_async(self) -> AsyncIterator[dict[str, Any]]:
        """Tell statistics for as long as iterations follow one another."""
        return self._stats.follow()

    def shutdown(self) -> None:
        """Let go of the engine; nobody may be waiting for an answer."""
        self._stepper.close()
        self._shared.close()
        self._release_engine()

    close = shutdown

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.shutdown()

    def _ask(
        self, prompt: Prompt, params: SamplingParams | None, served: ServiceOptions, streams: bool
    ) -> tuple[AskedPrompt, GenerateRequest]:
        params = params or SamplingParams()
        asked = read_prompt(next(self._next_number), prompt, params, self._session)
        return asked, served.apply(make_request(params, *parts(asked), streams))

    def _own(self, session: Session, release_engine: Callable[[], None] = lambda: None) -> None:
        self._session = session
        self._release_engine = release_engine
        self._shared = SharedSession(session)
        self._stepper = BackgroundStepper(self._shared)
        self._next_number = itertools.count()
        self._stats = StatsReader(session, self._shared)


def _open(model: Path | str, chosen: LlmOptions) -> tuple[Session, Callable[[], None]]:
    """Open a model's engine; returns also what lets the engine go once the session is closed."""
    session_config = chosen.session
    found = find_or_build(model, chosen.engine, chosen.cache, _say)
    try:
        return open_session(found.path, session_config, chosen.tokenizer), found.release
    except BaseException:
        found.release()
        raise


def _collect(shared: SharedSession, asked: AskedPrompt) -> RequestOutput:
    updates = sorted(shared.updates(asked.request_id), key=lambda each: each.index)
    return RequestOutput(
        asked.number,
        asked.prompt,
        asked.prompt_token_ids,
        [to_completion(update) for update in updates],
        context_logits=to_logits(updates[0].context_logits, len(asked.prompt_token_ids)),
    )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
