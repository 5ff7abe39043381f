"""The model of the text style: text in, text out, with TensorRT-LLM's names and habits.

One-dimensional `text_output`; deltas when streaming; the prompt echoed when not, unless excluded;
a batch answered row by row with `batch_index`, where the deployment is decoupled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tidemill.base.errors import InvalidRequestError
from tidemill.frontends.triton.answer import Answer
from tidemill.frontends.triton.model import NO_BATCH, Arrays, ServedModel, is_set
from tidemill.frontends.triton.request_inputs import RequestInputs, as_text
from tidemill.frontends.triton.sampling_inputs import TEXT_NAMES, RowOptions, read_options
from tidemill.frontends.triton.stub_api import Array, ResponseSender, strings
from tidemill.host.messages import GenerateRequest, Update

# The words of TensorRT-LLM's LLM API and llmapi model.
FINISH_WORDS = {
    "end_id": "stop",
    "stop_words": "stop",
    "length": "length",
    "timed_out": "timeout",
    "cancelled": "cancelled",
}


@dataclass(frozen=True)
class OutputWishes:
    """What each response holds beside the text, and in what shape."""

    has_batch: bool
    has_batch_index: bool
    returns_num_input_tokens: bool
    returns_num_output_tokens: bool
    returns_output_ids: bool


class TextAnswer(Answer):
    """Sends text as it comes: for streams every piece, otherwise each row whole."""

    def __init__(self, sender: ResponseSender, num_rows: int, wishes: OutputWishes) -> None:
        super().__init__(sender, num_rows)
        self._wishes = wishes
        self._held_tokens: list[list[int]] = [[] for _ in range(num_rows)]

    def take(self, row: int, update: Update, is_last: bool) -> None:
        tokens = self._held_tokens[row]
        tokens.extend(update.token_ids)
        # Half a character is no response of its own; its tokens count with the next piece.
        if update.text or update.is_final:
            self._held_tokens[row] = []
            self.send(self._outputs(row, update, tokens), is_final=is_last)

    def _outputs(self, row: int, update: Update, tokens: list[int]) -> Mapping[str, Array]:
        wishes = self._wishes
        outputs = {"text_output": strings(update.text)}
        if update.finish_reason is not None:
            outputs["finish_reason"] = strings(FINISH_WORDS[update.finish_reason])
        if wishes.returns_num_input_tokens:
            outputs["num_input_tokens"] = self._integers(update.num_input_tokens)
        if wishes.returns_num_output_tokens:
            outputs["num_output_tokens"] = self._integers(len(tokens))
        if wishes.returns_output_ids:
            outputs["output_ids"] = self._integers(*tokens)[..., np.newaxis, :]
            outputs["sequence_length"] = self._integers(len(tokens))
        if wishes.has_batch_index:
            outputs["batch_index"] = self._integers(row)
        return outputs

    def _integers(self, *values: int) -> Array:
        """Return integers as (1, n) where the model has a batch dimension, as (n,) otherwise."""
        array = np.array(values, dtype=np.int32)
        return array[np.newaxis] if self._wishes.has_batch else array


class TextModel(ServedModel):
    """Serves prompts as text."""

    def read(self, arrays: Arrays, sender: ResponseSender) -> tuple[list[GenerateRequest], Answer]:
        prompts = [as_text(value) for value in arrays["text_input"].reshape(-1).tolist()]
        self._check_batch(arrays["text_input"], len(prompts))
        is_streaming = is_set(arrays, "stream")
        self.check_streaming(is_streaming)
        inputs = RequestInputs(arrays, len(prompts))
        wishes = OutputWishes(
            has_batch=self.has_batch,
            has_batch_index=len(prompts) > 1,
            returns_num_input_tokens=inputs.flag("return_num_input_tokens", default=True),
            returns_num_output_tokens=inputs.flag("return_num_output_tokens", default=True),
            returns_output_ids=inputs.flag("return_output_ids"),
        )
        default_exclude = self.parameters.get("exclude_input_in_output") == "true"
        excludes_prompt = inputs.flag("exclude_input_in_output", default_exclude)
        rows = zip(
            prompts, read_options(inputs, TEXT_NAMES), inputs.text_lists("stop_words"), strict=True
        )
        requests = [
            _request(prompt, options, stop, is_streaming, excludes_prompt)
            for prompt, options, stop in rows
        ]
        return requests, TextAnswer(sender, len(prompts), wishes)

    def _check_batch(self, text_input: Array, num_prompts: int) -> None:
        if num_prompts == 0:
            raise InvalidRequestError(
                "the request has no prompt", where="text_input", expected="a text", got="none"
            )
        if num_prompts > 1 and not self.is_decoupled:
            raise InvalidRequestError(NO_BATCH, where="text_input", got=f"{text_input.shape}")


def _request(
    prompt: str,
    options: RowOptions,
    stop: tuple[str, ...],
    is_streaming: bool,
    excludes_prompt: bool,
) -> GenerateRequest:
    return GenerateRequest(
        request_id="",
        prompt=prompt,
        max_tokens=options.max_tokens,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        seed=options.seed,
        end_id=options.end_id,
        stop=list(stop),
        exclude_input_in_output=excludes_prompt,
        streaming=is_streaming,
    )
