"""The model of the text style: text in, text out, with TensorRT-LLM's names and habits.

One-dimensional `text_output`; deltas when streaming; the prompt echoed when not, unless excluded;
a batch answered row by row with `batch_index`, where the deployment is decoupled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tidemill.base.errors import InvalidRequestError
from tidemill.frontends.triton.answer import Answer
from tidemill.frontends.triton.model import Arrays, ServedModel, check_batch, is_set
from tidemill.frontends.triton.request_inputs import RequestInputs, as_text
from tidemill.frontends.triton.sampling_inputs import TEXT_NAMES, RowOptions, read_options
from tidemill.frontends.triton.sequences import AnswerPlace, expand_sequences
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
    """What each response holds beside the text, and in what shape.

    `accumulates`: a stream's texts are all text so far instead of what is new.
    """

    has_batch: bool
    returns_num_input_tokens: bool
    returns_num_output_tokens: bool
    returns_output_ids: bool
    accumulates: bool = False


class TextAnswer(Answer):
    """Sends text as it comes: for streams every piece, otherwise each row whole."""

    def __init__(
        self, sender: ResponseSender, places: Sequence[AnswerPlace], wishes: OutputWishes
    ) -> None:
        super().__init__(sender, len(places))
        self._places = places
        self._wishes = wishes
        self._held_tokens: list[list[int]] = [[] for _ in places]
        self._texts = [""] * len(places)

    def take(self, row: int, update: Update, is_last: bool) -> None:
        tokens = self._held_tokens[row]
        tokens.extend(update.token_ids)
        # Half a character is no response of its own; its tokens count with the next piece.
        if update.text or update.is_final:
            self._held_tokens[row] = []
            self.send(self._outputs(row, update, tokens), is_final=is_last)

    def _outputs(self, row: int, update: Update, tokens: list[int]) -> Mapping[str, Array]:
        wishes = self._wishes
        text = update.text
        if wishes.accumulates:
            text = self._texts[row] = self._texts[row] + text
        outputs = {"text_output": strings(text)}
        if update.finish_reason is not None:
            outputs["finish_reason"] = strings(FINISH_WORDS[update.finish_reason])
        if wishes.returns_num_input_tokens:
            outputs["num_input_tokens"] = self._integers(update.num_input_tokens)
        if wishes.returns_num_output_tokens:
            outputs["num_output_tokens"] = self._integers(len(tokens))
        if wishes.returns_output_ids:
            outputs["output_ids"] = self._integers(*tokens)[..., np.newaxis, :]
            outputs["sequence_length"] = self._integers(len(tokens))
        for name, index in self._places[row].outputs().items():
            outputs[name] = self._integers(index)
        return outputs

    def _integers(self, *values: int) -> Array:
        """Return integers as (1, n) where the model has a batch dimension, as (n,) otherwise."""
        array = np.array(values, dtype=np.int32)
        return array[np.newaxis] if self._wishes.has_batch else array


class TextModel(ServedModel):
    """Serves prompts as text."""

    counts_tokens = True

    def read(self, arrays: Arrays, sender: ResponseSender) -> tuple[list[GenerateRequest], Answer]:
        prompts = [as_text(value) for value in arrays["text_input"].reshape(-1).tolist()]
        if not prompts:
            raise InvalidRequestError(
                "the request has no prompt", where="text_input", expected="a text", got="none"
            )
        check_batch(self.is_decoupled, len(prompts), len(prompts))
        is_streaming = is_set(arrays, "stream")
        self.check_streaming(is_streaming)
        inputs = RequestInputs(arrays, len(prompts))
        default_exclude = self.parameters.is_on("exclude_input_in_output")
        excludes_prompt = inputs.flag("exclude_input_in_output", default_exclude)
        rows = zip(
            prompts, read_options(inputs, TEXT_NAMES), inputs.text_lists("stop_words"), strict=True
        )
        requests, places = expand_sequences(
            [
                _request(prompt, options, stop, is_streaming, excludes_prompt)
                for prompt, options, stop in rows
            ],
            inputs.integers("num_return_sequences"),
        )
        check_batch(self.is_decoupled, len(prompts), len(places))
        return requests, TextAnswer(sender, places, self._wishes(inputs))

    def _wishes(self, inputs: RequestInputs) -> OutputWishes:
        return OutputWishes(
            has_batch=self.has_batch,
            returns_num_input_tokens=inputs.flag("return_num_input_tokens", self.counts_tokens),
            returns_num_output_tokens=inputs.flag("return_num_output_tokens", self.counts_tokens),
            returns_output_ids=inputs.flag("return_output_ids"),
            accumulates=self.parameters.is_on("accumulate_tokens"),
        )


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
