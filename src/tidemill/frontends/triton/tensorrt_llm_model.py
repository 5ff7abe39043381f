"""The classic `tensorrt_llm` model: padded rows of tokens in, one response for each answer out.

Tokens are whole sequences, prompt included unless excluded, or what is new when streaming. Where
the engine has a tokenizer, a stream's responses end where characters end, so that a postprocessing
that knows one response alone breaks none; and `output_text` has the engine's own text of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import msgspec
import numpy as np

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
from tidemill.frontends.triton.request_inputs import RequestInputs
from tidemill.frontends.triton.sampling_inputs import TOKENS_NAMES, read_options
from tidemill.frontends.triton.sequences import AnswerPlace, expand_sequences
from tidemill.frontends.triton.stub_api import Array, ResponseSender, strings
from tidemill.frontends.triton.word_lists import unpack_words
from tidemill.host.messages import GenerateRequest, Update
from tidemill.runtime.logits_rules import LogitsRules
from tidemill.text.detokenizer import IncrementalDetokenizer
from tidemill.text.tokenizer import Tokenizer

NEEDED_OUTPUTS = ("output_ids", "sequence_length")
NO_END = -1
NO_INPUT = "input_ids or encoder_input_features is not present in the request."


@dataclass(frozen=True)
class TokenWishes:
    """What each response holds. `prompts` are what answers begin with, empty where excluded."""

    prompts: Sequence[Sequence[int]]
    is_streaming: bool
    details: DetailWishes


class TensorrtLlmAnswer(GatheredAnswer):
    """Sends tokens as they come when streaming, otherwise each answer whole."""

    def __init__(
        self,
        sender: ResponseSender,
        places: Sequence[AnswerPlace],
        wishes: TokenWishes,
        tokenizer: Tokenizer | None,
    ) -> None:
        super().__init__(sender, places, wishes.details)
        self._wishes = wishes
        self._borders: list[IncrementalDetokenizer] | None = None
        if tokenizer is not None and wishes.is_streaming:
            self._borders = [IncrementalDetokenizer(tokenizer) for _ in places]

    def is_due(self, row: int, update: Update, gathered: Gathered) -> bool:
        if self._borders is None:
            return True
        self._borders[row].push(update.token_ids)
        has_news = bool(gathered.tokens or gathered.text)
        return has_news and not self._borders[row].holds_back

    def outputs(self, row: int, beams: Sequence[Gathered]) -> dict[str, Array]:
        prompt = list(self._wishes.prompts[row])
        rows = [prompt + beam.tokens for beam in beams]
        return {
            "output_ids": pad_rows(rows, np.int32),
            "sequence_length": integers(*map(len, rows)),
            "output_text": strings(*(beam.text for beam in beams))[np.newaxis],
        }


class TensorrtLlmModel(ServedModel):
    """Serves prompts as rows of tokens."""

    def check_outputs(self, names: Sequence[str]) -> None:
        for name in NEEDED_OUTPUTS:
            if names and name not in names and name in self.output_names:
                raise InvalidRequestError(
                    f"{name} tensor must be present in list of output tensors",
                    where="requested outputs",
                    expected=name,
                    got=", ".join(names),
                    hint=f"request {name} too, or name no outputs to have them all",
                )

    def read(self, arrays: Arrays, sender: ResponseSender) -> tuple[list[GenerateRequest], Answer]:
        prompts = unpad_prompts(arrays)
        check_batch(self.is_decoupled, len(prompts), len(prompts))
        is_streaming = is_set(arrays, "streaming")
        self.check_streaming(is_streaming)
        inputs = RequestInputs(arrays, len(prompts))
        default_exclude = self.parameters.is_on("exclude_input_in_output")
        excludes = is_streaming or inputs.flag("exclude_input_in_output", default_exclude)
        words = (self._words(inputs, name) for name in ("stop_words_list", "bad_words_list"))
        rows = zip(
            read_options(inputs, TOKENS_NAMES),
            prompts,
            inputs.texts("prompt_text"),
            *words,
            strict=True,
        )
        requests, places = expand_sequences(
            [
                msgspec.structs.replace(
                    request,
                    prompt_tokens=prompt,
                    prompt=text,
                    stop=stop,
                    bad_words=bad,
                    exclude_input_in_output=excludes,
                    streaming=is_streaming and request.beams is None,
                    end_id=self._end_id(request.end_id),
                )
                for request, prompt, text, stop, bad in rows
            ],
            inputs.integers("num_return_sequences"),
        )
        add_bias(requests, places, inputs.array("embedding_bias"))
        check_batch(self.is_decoupled, len(prompts), len(places))
        wishes = TokenWishes(
            prompts=[() if excludes else request.prompt_tokens or () for request in requests],
            is_streaming=is_streaming,
            details=DetailWishes.read(inputs, counts_tokens=False, logits_type=self.logits_type),
        )
        return requests, TensorrtLlmAnswer(sender, places, wishes, self._tokenizer)

    def _end_id(self, given: int | None) -> int | None:
        """Return what ends an answer: nothing unless it is said; the model's own end means all."""
        if given is None:
            return NO_END
        is_own = self._tokenizer is not None and given == self._tokenizer.eos_token_id
        return None if is_own else given

    @cached_property
    def _tokenizer(self) -> Tokenizer | None:
        has_tokenizer = (self.engine_dir / "tokenizer.json").is_file()
        return Tokenizer.from_directory(self.engine_dir) if has_tokenizer else None

    def _words(self, inputs: RequestInputs, name: str) -> list[list[str]]:
        """Return words as texts, which are found however the model spells them."""
        rows = unpack_words(name, inputs.array(name), inputs.num_rows)
        return [[self._word_text(name, word) for word in words] for words in rows]

    def _word_text(self, name: str, word: list[int]) -> str:
        text = self._tokenizer.decode(word, skip_special_tokens=False) if self._tokenizer else ""
        if not text:
            raise InvalidRequestError(
                "a word has no text",
                where=name,
                expected="tokens of a tokenizer beside the engine",
                got=str(word),
                hint="copy the model's tokenizer.json into the engine directory",
            )
        return text


def add_bias(
    requests: list[GenerateRequest], places: Sequence[AnswerPlace], bias: Array | None
) -> None:
    """Give each request its row of what is added to the logits."""
    if bias is None:
        return
    rows = np.ascontiguousarray(bias, dtype=np.float32).reshape(-1, bias.shape[-1])
    for number, place in enumerate(places):
        rules = requests[number].rules or LogitsRules()
        row = rows[place.batch_index or 0].tobytes()
        requests[number] = msgspec.structs.replace(
            requests[number], rules=replace(rules, embedding_bias=row)
        )


def unpad_prompts(arrays: Arrays) -> list[list[int]]:
    """Return each row's tokens without the padding on its right.

    Raises: InvalidRequestError when there is no row, or a length does not fit its row.
    """
    rows = arrays.get("input_ids")
    if rows is None:
        raise InvalidRequestError(
            NO_INPUT,
            where="input_ids",
            expected="the prompt's tokens",
            got="none",
            hint="send input_ids and input_lengths; text is taken by the ensemble model",
        )
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
