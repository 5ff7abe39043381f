"""The classic `postprocessing` model: tokens in, text out, one response at a time.

It knows no stream: a row that begins with the tokenizer's begin token is a whole text, any other
is what follows one, so that no space at its beginning is lost. `ENGINE_TEXT`, where an ensemble
connects it, is what the engine made of the same tokens, and goes out as it is.
"""

from __future__ import annotations

from collections.abc import Mapping

from tidemill.base.errors import InvalidRequestError
from tidemill.frontends.triton.gathered_answer import PADDING
from tidemill.frontends.triton.local_model import LocalModel
from tidemill.frontends.triton.request_inputs import as_text
from tidemill.frontends.triton.stub_api import Array, strings


class PostprocessingModel(LocalModel):
    """Turns rows of tokens into texts."""

    def compute(self, arrays: Mapping[str, Array]) -> Mapping[str, Array]:
        text = arrays.get("ENGINE_TEXT")
        if text is not None:
            return {"OUTPUT": strings(*map(as_text, text.reshape(-1).tolist()))}
        tokens = arrays["TOKENS_BATCH"]
        rows = tokens.reshape(-1, tokens.shape[-1]) if tokens.size else tokens.reshape(1, 0)
        lengths = row_lengths(arrays.get("SEQUENCE_LENGTH"), rows)
        if len(lengths) != len(rows):
            raise InvalidRequestError(
                "the lengths do not fit the rows of tokens",
                where="SEQUENCE_LENGTH",
                expected=f"{len(rows)} lengths",
                got=str(lengths),
                hint="send a length for each row, as the tensorrt_llm model answers them",
            )
        texts = [
            self._decode(row[: max(0, length)].tolist())
            for row, length in zip(rows, lengths, strict=True)
        ]
        return {"OUTPUT": strings(*texts)}

    def _decode(self, tokens: list[int]) -> str:
        skips = self.parameters.is_on("skip_special_tokens", default=True)
        if tokens and tokens[0] == self.tokenizer.bos_token_id:
            return self.tokenizer.decode(tokens, skips)
        return self.tokenizer.decode_continuation(tokens, skips)


def row_lengths(given: Array | None, rows: Array) -> list[int]:
    """Return how many tokens of each row count; old deployments say so by padding alone."""
    lengths = given.reshape(-1) if given is not None else (rows != PADDING).sum(axis=1)
    return [int(length) for length in lengths]
