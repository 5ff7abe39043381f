"""Guides: which tokens may come next, so that an answer is JSON or follows a regex or a grammar.

In: a kind of guide and its text. Out: a `Guide`, which follows one answer token by token. The
grammar engine is llguidance (extra `guided`), imported when the first guide is made; each guide
costs what its own tokens cost. Knows nothing of logits.
"""

from __future__ import annotations

import json
from typing import Any

from tidemill.base.errors import InvalidRequestError, UnsupportedError
from tidemill.text.tokenizer import Tokenizer

# TensorRT-LLM's names of guide types, as its Triton input has them.
KINDS = ("json", "json_schema", "regex", "ebnf_grammar")
ANY_OBJECT = '{"type": "object"}'


class Guide:
    """One answer's place in a grammar."""

    def __init__(self, matcher: Any, end_mask: bytes) -> None:
        self._matcher, self._end_mask = matcher, end_mask

    def allowed(self) -> bytes:
        """Return a bit for each token, in words of 32; only end tokens once all is said."""
        if self._matcher.is_error():
            return self._end_mask
        mask: bytes = self._matcher.compute_bitmask()
        return mask

    def copy(self) -> Guide:
        """Return a guide of its own at the same place."""
        return Guide(self._matcher.deep_copy(), self._end_mask)

    def take(self, token: int) -> None:
        """Follow a token; after one that does not belong only end tokens may come."""
        self._matcher.consume_token(token)


class GuideMaker:
    """Makes guides for one tokenizer and a model's size of vocabulary."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._tokenizer, self._vocab_size = tokenizer, vocab_size
        self._native: Any = None

    def make(self, kind: str, text: str) -> Guide:
        """Compile a guide.

        Raises: InvalidRequestError when the kind or the text is wrong, UnsupportedError when the
        extra `guided` is not installed.
        """
        llguidance = _import()
        if kind not in KINDS:
            raise InvalidRequestError(
                "this kind of guide is not known",
                where="guided_decoding_guide_type",
                expected=" or ".join(KINDS),
                got=kind,
                hint="name one of these kinds, or send no guide for free text",
            )
        try:
            grammar = _grammar(llguidance, kind, text)
        except Exception as error:  # the grammar converter raises bare ones
            raise _bad_guide(kind, str(error)) from error
        matcher = llguidance.LLMatcher(self._native_tokenizer(llguidance), grammar, log_level=0)
        if matcher.is_error():
            raise _bad_guide(kind, matcher.get_error())
        return Guide(matcher, self._end_mask())

    def _end_mask(self) -> bytes:
        bits = 0
        for token in self._tokenizer.eos_token_ids:
            bits |= 1 << token
        return bits.to_bytes(4 * (self._vocab_size // 32 + 1), "little")

    def _native_tokenizer(self, llguidance: Any) -> Any:
        if self._native is None:
            self._native = llguidance.LLTokenizer(
                self._tokenizer.to_json(),
                n_vocab=self._vocab_size,
                eos_token=list(self._tokenizer.eos_token_ids),
            )
        return self._native


def _import() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise UnsupportedError(
            "guided decoding needs a package that is not installed",
            where="guided decoding",
            expected="llguidance",
            got="no such package",
            hint="pip install 'tidemill[guided]' where the engine runs",
        ) from error
    return llguidance


def _grammar(llguidance: Any, kind: str, text: str) -> str:
    matcher = llguidance.LLMatcher
    if kind == "json":
        return str(matcher.grammar_from_json_schema(ANY_OBJECT))
    if kind == "json_schema":
        json.loads(text)
        return str(matcher.grammar_from_json_schema(text))
    if kind == "regex":
        return str(matcher.grammar_from_regex(text))
    from llguidance.gbnf_to_lark import any_to_lark

    return str(matcher.grammar_from_lark(any_to_lark(text)))


def _bad_guide(kind: str, why: str) -> InvalidRequestError:
    return InvalidRequestError(
        "the guide cannot be read",
        where=f"guided decoding, {kind}",
        expected={"regex": "a regular expression", "json_schema": "a JSON schema"}.get(
            kind, "a grammar in Lark's or GBNF's form"
        ),
        got=why.strip(),
        hint="mend the guide where it is named above",
    )
