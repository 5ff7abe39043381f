"""The model of the tokens style: prompts packed end to end, answers packed the same way.

`input_ids` holds the prompts, `input_lengths` their lengths; `output_ids` holds the answers
without the prompts, `output_lengths` tells them apart. One response in prompt order; a stream's
responses hold what is new, with length 0 for prompts that have nothing new.
"""

from __future__ import annotations

import msgspec
import numpy as np

from tidemill.base.errors import InvalidRequestError
from tidemill.frontends.triton.answer import Answer
from tidemill.frontends.triton.model import Arrays, ServedModel, is_set
from tidemill.frontends.triton.request_inputs import RequestInputs
from tidemill.frontends.triton.sampling_inputs import TOKENS_NAMES, read_options
from tidemill.frontends.triton.sequences import check_counts
from tidemill.frontends.triton.stub_api import Array, ResponseSender
from tidemill.host.messages import GenerateRequest, Update


class TokensAnswer(Answer):
    """Packs the answers: all in one response, or each step's news when streaming."""

    def __init__(self, sender: ResponseSender, num_rows: int, is_streaming: bool) -> None:
        super().__init__(sender, num_rows)
        self._is_streaming = is_streaming
        self._rows: list[list[int]] = [[] for _ in range(num_rows)]

    def take(self, row: int, update: Update, is_last: bool) -> None:
        self._rows[row].extend(update.token_ids)
        has_news = self._is_streaming and bool(update.token_ids)
        if has_news or is_last:
            rows, self._rows = self._rows, [[] for _ in self._rows]
            self.send(pack_rows(rows), is_final=is_last)


def pack_rows(rows: list[list[int]]) -> dict[str, Array]:
    """Return the output tensors of answers in prompt order."""
    return {
        "output_ids": np.array([token for row in rows for token in row], dtype=np.int32),
        "output_lengths": np.array([len(row) for row in rows], dtype=np.int32),
    }


def unpack_prompts(input_ids: Array, input_lengths: Array) -> list[list[int]]:
    """Cut packed tokens into prompts.

    Raises: InvalidRequestError when the lengths do not add up to the tokens, or one is below 1.
    """
    tokens, lengths = input_ids.reshape(-1).tolist(), input_lengths.reshape(-1).tolist()
    if not lengths or min(lengths) < 1 or sum(lengths) != len(tokens):
        raise InvalidRequestError(
            "the packed prompts do not add up",
            where="input_ids, input_lengths",
            expected="lengths of at least 1 whose sum is the number of input_ids",
            got=f"{len(tokens)} input_ids, input_lengths {lengths}",
            hint="input_ids holds all prompts end to end, without padding",
        )
    ends = np.cumsum(lengths).tolist()
    return [tokens[end - length : end] for end, length in zip(ends, lengths, strict=True)]


class TokensModel(ServedModel):
    """Serves prompts as tokens; the engine needs no tokenizer."""

    def read(self, arrays: Arrays, sender: ResponseSender) -> tuple[list[GenerateRequest], Answer]:
        prompts = unpack_prompts(arrays["input_ids"], arrays["input_lengths"])
        check_counts([1] * len(prompts))
        is_streaming = is_set(arrays, "streaming")
        self.check_streaming(is_streaming)
        inputs = RequestInputs(arrays, len(prompts))
        requests = [
            msgspec.structs.replace(request, prompt_tokens=prompt, streaming=is_streaming)
            for prompt, request in zip(prompts, read_options(inputs, TOKENS_NAMES), strict=True)
        ]
        refuse_details(requests)
        return requests, TokensAnswer(sender, len(prompts), is_streaming)


def refuse_details(requests: list[GenerateRequest]) -> None:
    """Refuse what the two tensors of this style have no room for.

    Raises: InvalidRequestError.
    """
    if any(request.beams is not None or request.wishes is not None for request in requests):
        raise InvalidRequestError(
            "the packed-token layout gives one answer a prompt, as tokens alone",
            where="beam_width, return_log_probs, return_context_logits, return_generation_logits",
            expected="1, false, false, false",
            got="another value",
            hint="tidemill deploy --style inflight_batcher_llm has tensors for them",
        )
