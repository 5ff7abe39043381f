"""The model of the text style: text in, text out, with TensorRT-LLM's names and habits.

One-dimensional `text_output`; deltas when streaming; the prompt echoed when not, unless excluded;
a batch answered row by row with `batch_index`, where the deployment is decoupled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from tidemill.api.outputs import FINISH_REASONS
from tidemill.base.errors import InvalidRequestError
from tidemill.frontends.triton.answer import Answer
from tidemill.frontends.triton.gathered_answer import (
    DetailWishes,
    Gathered,
    GatheredAnswer,
    integers,
    pad_rows,
)
from tidemill.frontends.triton.model import Arrays, ServedModel, check_batch, is_set
from tidemill.frontends.triton.request_inputs import RequestInputs, as_text
from tidemill.frontends.triton.sampling_inputs import TEXT_NAMES, read_options
from tidemill.frontends.triton.sequences import AnswerPlace, expand_sequences
from tidemill.frontends.triton.stub_api import Array, ResponseSender, strings
from tidemill.host.messages import GenerateRequest, Update


@dataclass(frozen=True)
class TextWishes:
    """What each response holds, and in what shape.

    `accumulates`: a stream's texts are all text so far instead of what is new.
    """

    details: DetailWishes
    has_batch: bool = True
    returns_output_ids: bool = False
    accumulates: bool = False


class TextAnswer(GatheredAnswer):
    """Sends text as it comes: for streams every piece, otherwise each row whole."""

    def __init__(
        self, sender: ResponseSender, places: Sequence[AnswerPlace], wishes: TextWishes
    ) -> None:
        super().__init__(sender, places, wishes.details)
        self._wishes = wishes
        self._texts = [""] * len(places)

    def is_due(self, row: int, update: Update, gathered: Gathered) -> bool:
        # Half a character is no response of its own; its tokens count with the next piece.
        return bool(gathered.text)

    def outputs(self, row: int, beams: Sequence[Gathered]) -> dict[str, Array]:
        wishes, first = self._wishes, beams[0]
        texts = [beam.text for beam in beams]
        if wishes.accumulates and len(beams) == 1:
            texts[0] = self._texts[row] = self._texts[row] + first.text
        outputs = {"text_output": strings(*texts)}
        if first.finish_reason is not None:
            reasons = [FINISH_REASONS.get(beam.finish_reason or "", "") for beam in beams]
            outputs["finish_reason"] = strings(*reasons)
        if wishes.returns_output_ids:
            outputs["output_ids"] = pad_rows([beam.tokens for beam in beams], np.int32)
            outputs["sequence_length"] = integers(*(len(beam.tokens) for beam in beams))
        return outputs

    def shaped(self, outputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """Drop the batch dimension where the model has none; texts never have one."""
        if self._wishes.has_batch:
            return outputs
        return {name: array[0] if array.ndim > 1 else array for name, array in outputs.items()}


class TextModel(ServedModel):
    """Serves prompts as text."""

    counts_tokens = True

    def read(self, arrays: Arrays, sender: ResponseSender) -> tuple[list[GenerateRequest], Answer]:
        prompts = [as_text(value) for value in arrays["text_input"].reshape(-1).tolist()]
        if not prompts:
            raise InvalidRequestError(
                "the request has no prompt",
                where="text_input",
                expected="a text",
                got="none",
                hint="send a text for each prompt in text_input",
            )
        check_batch(self.is_decoupled, len(prompts), len(prompts))
        is_streaming = is_set(arrays, "stream")
        self.check_streaming(is_streaming)
        inputs = RequestInputs(arrays, len(prompts))
        default_exclude = self.parameters.is_on("exclude_input_in_output")
        excludes = is_streaming or inputs.flag("exclude_input_in_output", default_exclude)
        rows = zip(
            read_options(inputs, TEXT_NAMES),
            prompts,
            inputs.text_lists("stop_words"),
            inputs.text_lists("bad_words"),
            read_bias_words(inputs),
            strict=True,
        )
        requests, places = expand_sequences(
            [
                msgspec.structs.replace(
                    request,
                    prompt=prompt,
                    stop=list(stop),
                    bad_words=list(bad),
                    bias_words=bias,
                    exclude_input_in_output=excludes,
                    streaming=is_streaming and request.beams is None,
                )
                for request, prompt, stop, bad, bias in rows
            ],
            inputs.integers("num_return_sequences"),
        )
        check_batch(self.is_decoupled, len(prompts), len(places))
        return requests, TextAnswer(sender, places, self._wishes(inputs))

    def _wishes(self, inputs: RequestInputs) -> TextWishes:
        return TextWishes(
            DetailWishes.read(inputs, self.counts_tokens, self.logits_type),
            has_batch=self.has_batch,
            returns_output_ids=inputs.flag("return_output_ids"),
            accumulates=self.parameters.is_on("accumulate_tokens"),
        )


def read_bias_words(inputs: RequestInputs) -> list[list[tuple[str, float]]]:
    """Return each row's words with what they add to the logits of their tokens.

    Raises: InvalidRequestError when there are not as many weights as words.
    """
    rows = inputs.text_lists("embedding_bias_words")
    weights = inputs.array("embedding_bias_weights")
    given = [] if weights is None else weights.reshape(-1).tolist()
    num_words = sum(map(len, rows))
    if num_words and len(given) != num_words:
        raise InvalidRequestError(
            "biased words and their weights differ in number",
            where="embedding_bias_weights",
            expected=f"{num_words} weights",
            got=str(len(given)),
            hint="send a weight for each word of embedding_bias_words, in their order",
        )
    left = iter(given)
    return [[(word, next(left)) for word in words] for words in rows]
