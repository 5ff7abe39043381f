"""The classic `preprocessing` model: texts in, padded rows of tokens and word lists out.

The prompt is taken as it is, without a chat template. Inputs that are only passed on come out as
they went in.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np

from tidemill.base.errors import InvalidRequestError
from tidemill.frontends.triton.local_model import LocalModel
from tidemill.frontends.triton.request_inputs import RequestInputs, as_text
from tidemill.frontends.triton.stub_api import Array
from tidemill.frontends.triton.unsupported_inputs import refuse_unsupported
from tidemill.frontends.triton.word_lists import pack_words
from tidemill.text.text_length import check_side_texts, is_far_longer

NO_END = -1
# It does not know the engine, which refuses what is too long for it: this is for texts that would
# keep the model busy for minutes.
MAX_TOKENS = 1 << 18


class PreprocessingModel(LocalModel):
    """Tokenises prompts and words."""

    def compute(self, arrays: Mapping[str, Array]) -> Mapping[str, Array]:
        prompts = [as_text(value) for value in arrays["QUERY"].reshape(-1).tolist()]
        inputs = RequestInputs(arrays, len(prompts))
        refuse_unsupported(inputs)
        adds_special = self.parameters.is_on("add_special_tokens", default=True)
        for prompt in prompts:
            self._check_length(prompt)
        rows = [self._encode(prompt, adds_special) for prompt in prompts]
        end_id = self.tokenizer.eos_token_id
        own_end = NO_END if end_id is None else end_id
        own_pad = self.tokenizer.pad_token_id
        pads = fill(inputs.integers("PAD_ID"), own_end if own_pad is None else own_pad)
        return {
            "INPUT_ID": pad_rows(rows, pads),
            "REQUEST_INPUT_LEN": column([len(row) for row in rows]),
            "DECODER_INPUT_ID": column(pads),
            "REQUEST_DECODER_INPUT_LEN": column([1] * len(rows)),
            "BAD_WORDS_IDS": self._words(inputs, "BAD_WORDS_DICT"),
            "STOP_WORDS_IDS": self._words(inputs, "STOP_WORDS_DICT"),
            "EMBEDDING_BIAS": self._bias(inputs),
            "REQUEST_OUTPUT_LEN": arrays["REQUEST_OUTPUT_LEN"],
            "OUT_END_ID": column(fill(inputs.integers("END_ID"), own_end)),
            "OUT_PAD_ID": column(pads),
        }

    def _check_length(self, prompt: str) -> None:
        """Refuse a prompt that no model can take; reading it all would keep others waiting."""
        if is_far_longer(self.tokenizer, prompt, MAX_TOKENS):
            raise InvalidRequestError(
                "the prompt is too long",
                where="QUERY",
                expected=f"at most {MAX_TOKENS} tokens",
                got=f"{len(prompt)} characters",
                hint="shorten the prompt; no engine reads so many tokens",
            )

    def _encode(self, text: str, adds_special: bool) -> list[int]:
        return self.tokenizer.encode(text, adds_special)

    def _words(self, inputs: RequestInputs, name: str) -> Array:
        rows = _word_lists(inputs, name)
        tokens = [[self._encode(word, False) for word in words] for words in rows]
        return pack_words([[word for word in words if word] for words in tokens])

    def _bias(self, inputs: RequestInputs) -> Array:
        """Return what each prompt adds to the logits of each token; no columns when nothing."""
        rows = _word_lists(inputs, "EMBEDDING_BIAS_WORDS")
        if not any(rows):
            return np.zeros((inputs.num_rows, 0), dtype=np.float32)
        weights = inputs.array("EMBEDDING_BIAS_WEIGHTS")
        given = 0 if weights is None else weights.size
        if weights is None or given != sum(map(len, rows)):
            raise InvalidRequestError(
                "biased words and their weights differ in number",
                where="EMBEDDING_BIAS_WEIGHTS",
                expected=f"{sum(map(len, rows))} weights",
                got=str(given),
                hint="send a weight for each word of EMBEDDING_BIAS_WORDS, in their order",
            )
        bias = np.zeros((inputs.num_rows, self.tokenizer.vocab_size), dtype=np.float32)
        left = iter(weights.reshape(-1).tolist())
        for row, words in zip(bias, rows, strict=True):
            for word in words:
                row[self._encode(word, False)] += next(left)
        return bias


def _word_lists(inputs: RequestInputs, name: str) -> list[tuple[str, ...]]:
    """Return each prompt's words.

    Raises: InvalidRequestError when they are too long to be read while others wait.
    """
    rows = inputs.text_lists(name)
    check_side_texts(name, itertools.chain.from_iterable(rows))
    return rows


def fill(values: list[int | None], default: int) -> list[int]:
    """Return the values with a default for those that were not sent."""
    return [default if value is None else value for value in values]


def column(values: list[int]) -> Array:
    """Return one integer a prompt, as (prompts, 1)."""
    return np.array(values, dtype=np.int32)[:, np.newaxis]


def pad_rows(rows: list[list[int]], pads: list[int]) -> Array:
    """Return rows of unequal length as one array, padded on the right."""
    width = max(map(len, rows), default=0)
    padded = [row + [pad] * (width - len(row)) for row, pad in zip(rows, pads, strict=True)]
    return np.array(padded, dtype=np.int32).reshape(len(rows), width)
