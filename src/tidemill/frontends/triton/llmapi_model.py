"""TensorRT-LLM's llmapi model: one text in, text out, with `sampling_param_*` for names.

Its habits differ from the classic models': no batch dimension, a stream's texts are cumulative,
and a stopped request ends with the error CANCELLED, as does the request that stops it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tidemill.api.outputs import FINISH_REASONS
from tidemill.base.errors import CancelledError, InvalidRequestError, TidemillError
from tidemill.frontends.triton.answer import Answer
from tidemill.frontends.triton.model import Arrays, ServedModel, is_set
from tidemill.frontends.triton.perf_outputs import llmapi_perf_outputs
from tidemill.frontends.triton.request_inputs import RequestInputs, as_text
from tidemill.frontends.triton.stub_api import FINAL, ResponseSender, make_error, strings
from tidemill.frontends.triton.unsupported_inputs import refuse_unsupported
from tidemill.host.messages import GenerateRequest, Update
from tidemill.runtime.logits_rules import LogitsRules
from tidemill.runtime.observation import OutputWishes

CANCELLED = "Request cancelled by client"
DEFAULT_MAX_TOKENS = 32
LOGPROB, PERF_METRICS = "cumulative_logprob", "perf_metrics"
EXTRA_TO_FLAG = {
    "finish_reason": "return_finish_reason",
    "stop_reason": "return_stop_reason",
    LOGPROB: "return_cumulative_logprob",
    PERF_METRICS: "sampling_param_return_perf_metrics",
}
NOT_ONE_DIMENSION = "The current implementation only supports text_input being a 1D tensor."


class LlmapiAnswer(Answer):
    """Sends the whole text so far with every piece."""

    def __init__(self, sender: ResponseSender, extras: Sequence[str]) -> None:
        super().__init__(sender, 1)
        self._extras = extras
        self._text = ""

    def take(self, row: int, update: Update, is_last: bool) -> None:
        if update.finish_reason == "cancelled":
            self.fail(CancelledError(CANCELLED))
            return
        self._text += update.text
        if not (update.text or is_last):
            return
        outputs = {"text_output": strings(self._text)}
        if update.finish_reason is not None and "finish_reason" in self._extras:
            outputs["finish_reason"] = strings(FINISH_REASONS[update.finish_reason])
        if is_last and "stop_reason" in self._extras:
            reason = update.stop_reason
            outputs["stop_reason"] = strings("None" if reason is None else str(reason))
        if update.metrics is not None and PERF_METRICS in self._extras:
            outputs.update(llmapi_perf_outputs(update.metrics))
        if update.cumulative_logprob is not None and LOGPROB in self._extras:
            outputs["cumulative_logprob"] = np.array([update.cumulative_logprob], dtype=np.float32)
        self.send(outputs, is_final=is_last)

    def fail(self, error: Exception) -> None:
        super().fail(error if isinstance(error, CancelledError) else in_llmapi_words(error))


class LlmapiModel(ServedModel):
    """Serves one prompt as text."""

    def read(self, arrays: Arrays, sender: ResponseSender) -> tuple[list[GenerateRequest], Answer]:
        try:
            return self._read(arrays, sender)
        except TidemillError as error:
            raise in_llmapi_words(error) from error

    def _read(self, arrays: Arrays, sender: ResponseSender) -> tuple[list[GenerateRequest], Answer]:
        text_input = arrays["text_input"]
        if text_input.ndim != 1 or text_input.size == 0:
            raise InvalidRequestError(
                NOT_ONE_DIMENSION,
                where="text_input",
                expected="shape [1]",
                got=f"shape {list(text_input.shape)}",
                hint="send each prompt in a request of its own; the engine batches them",
            )
        is_streaming = is_set(arrays, "streaming")
        self.check_streaming(is_streaming)
        inputs = RequestInputs(arrays, 1)
        refuse_unsupported(inputs)
        max_tokens = inputs.integers("sampling_param_max_tokens")[0]
        extras = [name for name, flag in EXTRA_TO_FLAG.items() if inputs.flag(flag)]
        request = GenerateRequest(
            request_id="",
            prompt=as_text(text_input.tolist()[0]),
            max_tokens=DEFAULT_MAX_TOKENS if max_tokens is None else max_tokens,
            temperature=inputs.numbers("sampling_param_temperature")[0],
            top_k=inputs.integers("sampling_param_top_k")[0],
            top_p=inputs.numbers("sampling_param_top_p")[0],
            seed=inputs.integers("sampling_param_seed")[0],
            rules=read_llmapi_rules(inputs),
            best_of=inputs.integers("sampling_param_best_of")[0],
            processor=inputs.texts("sampling_param_logits_post_processor_name")[0] or None,
            wishes=OutputWishes(num_logprobs=0) if LOGPROB in extras else None,
            stop=list(inputs.text_lists("sampling_param_stop")[0]),
            exclude_input_in_output=inputs.flag("sampling_param_exclude_input_from_output"),
            streaming=is_streaming,
            return_perf_metrics=PERF_METRICS in extras,
        )
        return [request], LlmapiAnswer(sender, extras)

    def answer_stop(self, sender: ResponseSender) -> None:
        sender.send(make_error(CancelledError(CANCELLED)), flags=FINAL)


def read_llmapi_rules(inputs: RequestInputs) -> LogitsRules:
    """Return the penalties that were sent."""
    return LogitsRules(
        presence_penalty=inputs.numbers("sampling_param_presence_penalty")[0] or 0.0,
        frequency_penalty=inputs.numbers("sampling_param_frequency_penalty")[0] or 0.0,
    )


def in_llmapi_words(error: Exception) -> TidemillError:
    """Return an error that begins as llmapi's do, with what was wrong behind."""
    if not isinstance(error, TidemillError):
        return TidemillError(f"Error generating request: {error}")
    return type(error)(
        f"Error generating request: {error.what}",
        where=error.where,
        expected=error.expected,
        got=error.got,
        hint=error.hint,
    )
