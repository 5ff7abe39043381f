"""The classic `tensorrt_llm` model: padded rows of tokens in, one response for each answer out.

Tokens are whole sequences, prompt included unless excluded, or what is new when streaming. Where
the engine has a tokenizer, a stream's responses end where characters end, so that a postprocessing
that knows one response alone breaks none; and `output_text` has the engine's own text of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import msgspec
import numpy as np

from tidemill.base.errors import InvalidRequestError
from tidemill.frontends.triton.answer import Answer
from tidemill.frontends.triton.model import Arrays, ServedModel, check_batch, is_set
from tidemill.frontends.triton.request_inputs import RequestInputs
from tidemill.frontends.triton.sampling_inputs import TOKENS_NAMES, RowOptions, read_options
from tidemill.frontends.triton.sequences import AnswerPlace, expand_sequences
from tidemill.frontends.triton.stub_api import Array, ResponseSender, strings
from tidemill.frontends.triton.word_lists import unpack_words
from tidemill.host.messages import GenerateRequest, Update
from tidemill.text.detokenizer import IncrementalDetokenizer
from tidemill.text.tokenizer import Tokenizer

NEEDED_OUTPUTS = ("output_ids", "sequence_length")
NO_INPUT = "input_ids or encoder_input_features must be present"


@dataclass(frozen=True)
class TokenWishes:
    """What each response holds. `prompts` are what answers begin with, empty where excluded."""

    prompts: Sequence[Sequence[int]]
    is_streaming: bool
    returns_num_input_tokens: bool
    returns_num_output_tokens: bool


class TensorrtLlmAnswer(Answer):
    """Sends tokens as they come when streaming, otherwise each answer whole."""

    def __init__(
        self,
        sender: ResponseSender,
        places: Sequence[AnswerPlace],
        wishes: TokenWishes,
        tokenizer: Tokenizer | None,
    ) -> None:
        super().__init__(sender, len(places))
        self._places = places
        self._wishes = wishes
        self._tokens = [list(prompt) for prompt in wishes.prompts]
        self._texts = [""] * len(places)
        is_text_stream = tokenizer is not None and wishes.is_streaming
        self._borders = (
            [IncrementalDetokenizer(tokenizer) for _ in places]
            if tokenizer is not None and is_text_stream
            else None
        )

    def take(self, row: int, update: Update, is_last: bool) -> None:
        self._tokens[row] += update.token_ids
        self._texts[row] += update.text
        if not update.is_final:
            if not (self._tokens[row] or self._texts[row]):
                return
            if self._borders is not None:
                self._borders[row].push(update.token_ids)
                if self._borders[row].holds_back:
                    return
        tokens, self._tokens[row] = self._tokens[row], []
        text, self._texts[row] = self._texts[row], ""
        self.send(self._outputs(row, update, tokens, text), is_final=is_last)

    def _outputs(
        self, row: int, update: Update, tokens: list[int], text: str
    ) -> Mapping[str, Array]:
        wishes = self._wishes
        outputs = {
            "output_ids": _integers(*tokens)[:, np.newaxis],
            "sequence_length": _integers(len(tokens)),
            "output_text": strings(text)[np.newaxis],
        }
        if wishes.returns_num_input_tokens:
            outputs["num_input_tokens"] = _integers(update.num_input_tokens)
        if wishes.returns_num_output_tokens:
            outputs["num_output_tokens"] = _integers(len(tokens) - len(wishes.prompts[row]))
        for name, index in self._places[row].outputs().items():
            outputs[name] = _integers(index)
        return outputs


def _integers(*values: int) -> Array:
    """Return integers as (1, n): every response is a batch of one."""
    return np.array([values], dtype=np.int32)


class TensorrtLlmModel(ServedModel):
    """Serves prompts as rows of tokens."""

    def check_outputs(self, names: Sequence[str]) -> None:
        for name in NEEDED_OUTPUTS:
            if names and name not in names:
                raise InvalidRequestError(
                    f"{name} tensor must be present in list of output tensors"
                )

    def read(self, arrays: Arrays, sender: ResponseSender) -> tuple[list[GenerateRequest], Answer]:
        prompts = unpad_prompts(arrays)
        check_batch(self.is_decoupled, len(prompts), len(prompts))
        is_streaming = is_set(arrays, "streaming")
        self.check_streaming(is_streaming)
        inputs = RequestInputs(arrays, len(prompts))
        rows = zip(
            prompts,
            read_options(inputs, TOKENS_NAMES),
            unpack_words("stop_words_list", inputs.array("stop_words_list"), len(prompts)),
            inputs.texts("prompt_text"),
            strict=True,
        )
        default_exclude = self.parameters.is_on("exclude_input_in_output")
        excludes = is_streaming or inputs.flag("exclude_input_in_output", default_exclude)
        requests, places = expand_sequences(
            [
                msgspec.structs.replace(
                    self._request(prompt, options, words),
                    prompt=text,
                    exclude_input_in_output=excludes,
                    streaming=is_streaming,
                )
                for prompt, options, words, text in rows
            ],
            inputs.integers("num_return_sequences"),
        )
        check_batch(self.is_decoupled, len(prompts), len(places))
        wishes = TokenWishes(
            prompts=[() if excludes else request.prompt_tokens or () for request in requests],
            is_streaming=is_streaming,
            returns_num_input_tokens=inputs.flag("return_num_input_tokens"),
            returns_num_output_tokens=inputs.flag("return_num_output_tokens"),
        )
        return requests, TensorrtLlmAnswer(sender, places, wishes, self._tokenizer)

    @cached_property
    def _tokenizer(self) -> Tokenizer | None:
        has_tokenizer = (self.engine_dir / "tokenizer.json").is_file()
        return Tokenizer.from_directory(self.engine_dir) if has_tokenizer else None

    def _request(
        self, prompt: list[int], options: RowOptions, stop_words: list[list[int]]
    ) -> GenerateRequest:
        return GenerateRequest(
            request_id="",
            prompt_tokens=prompt,
            max_tokens=options.max_tokens,
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            seed=options.seed,
            end_id=options.end_id,
            stop=[self._stop_text(word) for word in stop_words],
        )

    def _stop_text(self, word: list[int]) -> str:
        """Return a stop word as text, which ends an answer however the model spells it."""
        text = self._tokenizer.decode(word, skip_special_tokens=False) if self._tokenizer else ""
        if not text:
            raise InvalidRequestError(
                "a stop word has no text",
                where="stop_words_list",
                expected="tokens of a tokenizer beside the engine",
                got=str(word),
                hint="copy the model's tokenizer.json into the engine directory",
            )
        return text


def unpad_prompts(arrays: Arrays) -> list[list[int]]:
    """Return each row's tokens without the padding on its right.

    Raises: InvalidRequestError when there is no row, or a length does not fit its row.
    """
    rows = arrays.get("input_ids")
    if rows is None:
        raise InvalidRequestError(NO_INPUT, got="neither")
    rows = rows.reshape(1, -1) if rows.ndim < 2 else rows
    lengths = arrays["input_lengths"].reshape(-1).tolist()
    if len(lengths) != len(rows) or not all(1 <= length <= rows.shape[1] for length in lengths):
        raise InvalidRequestError(
            "the lengths of the prompts do not fit",
            where="input_lengths",
            expected=f"{len(rows)} lengths from 1 to {rows.shape[1]}",
            got=str(lengths),
            hint="input_ids has one row a prompt, padded on its right",
        )
    return [row[:length].tolist() for row, length in zip(rows, lengths, strict=True)]
