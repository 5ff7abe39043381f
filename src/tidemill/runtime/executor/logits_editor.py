"""What a request's rules do to its next row of logits, kept up to date token by token.

In: a `TokenHistory`. Out: a `RowEdits` for each step, in the form that the compiled sample op
reads. Each step costs what is new in it; only requests with rules have an editor. Order: biases,
penalties, then bans. Knows nothing of rows, batches or other requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tidemill.runtime.logits_rules import LogitsRules
from tidemill.runtime.token_history import TokenHistory

Array = npt.NDArray[Any]

RECORD = np.dtype([("token", "<i4"), ("add", "<f4"), ("factor", "<f4"), ("subtract", "<f4")])
NO_RECORDS: Array = np.zeros(0, RECORD)


@dataclass(frozen=True)
class RowEdits:
    """One row's edits: records in order, a bias and a mask of padded row length, this step's top_p.

    Source: ops/logits_edits.py has the meaning, ops/sample/edits_cpu.py the layout.
    """

    records: Array
    bias: Array | None
    mask: Array | None
    top_p: float


class LogitsEditor:
    """The rules of one request at work."""

    def __init__(self, history: TokenHistory, row_elements: int) -> None:
        request = history.request
        rules = request.sampling.rules or LogitsRules()
        self._history, self._rules = history, rules
        self._penalties = Penalties(rules)
        self._bans = Bans(rules)
        self._top_p = TopPDecay(request.sampling.top_p, rules)
        self._tokens: list[int] = []
        self._mask_words = row_elements // 32 + 1
        self._bias = _padded_bias(rules, row_elements)
        self._fixed = _bias_records(rules)

    def edits(self) -> RowEdits:
        """Catch up with the history and return the next row's edits."""
        self._catch_up()
        banned = self._bans.after(self._tokens)
        if self._history.num_output < self._rules.min_tokens:
            banned.extend(self._history.request.end_ids)
        parts = [self._fixed, self._penalties.records(), _ban_records(banned)]
        records = np.concatenate([part for part in parts if len(part)] or [NO_RECORDS])
        return RowEdits(records, self._bias, self._mask(), self._top_p.value)

    def _mask(self) -> Array | None:
        guide = self._history.request.guide
        if guide is None:
            return None
        words = np.frombuffer(guide.allowed(), np.uint32)[: self._mask_words]
        return np.append(words, np.zeros(self._mask_words - len(words), np.uint32))

    def _catch_up(self) -> None:
        request, tokens = self._history.request, self._history.tokens
        first, num_prompt = len(self._tokens), len(request.prompt_tokens)
        self._take(tokens[first:])
        new_output = tokens[max(first, num_prompt) :]
        if request.guide is not None:
            for token in new_output:
                request.guide.take(token)
        self._top_p.take(new_output)

    def _take(self, tokens: Sequence[int]) -> None:
        first = len(self._tokens)
        self._tokens.extend(tokens)
        if self._rules.has_penalties:
            self._penalties.take(tokens, first)
        if self._rules.bans_ngrams:
            self._bans.take(self._tokens, first)


class Penalties:
    """How often each token of a sequence occurred, and what that costs it."""

    def __init__(self, rules: LogitsRules) -> None:
        self._rules = rules
        self._token_to_slot: dict[int, int] = {}
        self._tokens: Array = np.zeros(64, np.int32)
        self._counts: Array = np.zeros(64, np.float64)

    def take(self, tokens: Sequence[int], first: int) -> None:
        """Count tokens at positions from `first` on; the ignored head of a prompt counts zero."""
        num_ignored = self._rules.prompt_ignore_length - first
        for index, token in enumerate(tokens):
            slot = self._token_to_slot.setdefault(token, len(self._token_to_slot))
            if slot == len(self._tokens):
                self._tokens = np.append(self._tokens, np.zeros_like(self._tokens))
                self._counts = np.append(self._counts, np.zeros_like(self._counts))
            self._tokens[slot] = token
            self._counts[slot] += index >= num_ignored

    def records(self) -> Array:
        """One record for each token seen: the factor of repetition, the price of presence."""
        num_seen, rules = len(self._token_to_slot), self._rules
        records = np.zeros(num_seen, RECORD)
        counts = self._counts[:num_seen]
        records["token"] = self._tokens[:num_seen]
        records["factor"] = rules.repetition_penalty
        records["subtract"] = (
            rules.presence_penalty * (counts > 0) + rules.frequency_penalty * counts
        )
        return records


class Bans:
    """Bad words and repeated n-grams: which tokens may not come next."""

    def __init__(self, rules: LogitsRules) -> None:
        self._always = [word[0] for word in rules.bad_words if len(word) == 1]
        self._words = [(list(word[:-1]), word[-1]) for word in rules.bad_words if len(word) > 1]
        self._size = rules.no_repeat_ngram_size if rules.bans_ngrams else 0
        self._followers: dict[tuple[int, ...], list[int]] = {}

    def take(self, tokens: Sequence[int], first: int) -> None:
        """Remember the n-grams that end at positions from `first` on."""
        size = self._size
        for end in range(max(first, size - 1), len(tokens)):
            start = tuple(tokens[end - size + 1 : end])
            self._followers.setdefault(start, []).append(tokens[end])

    def after(self, tokens: list[int]) -> list[int]:
        """Return the tokens that may not follow."""
        banned = list(self._always)
        for head, last in self._words:
            if tokens[-len(head) :] == head:
                banned.append(last)
        if self._size:
            start = tuple(tokens[len(tokens) - self._size + 1 :])
            banned.extend(self._followers.get(start, ()))
        return banned


class TopPDecay:
    """top_p that shrinks with each token, down to a floor, until a token resets it."""

    def __init__(self, top_p: float, rules: LogitsRules) -> None:
        self._initial, self._rules = top_p, rules
        self.value = top_p

    def take(self, tokens: Sequence[int]) -> None:
        """Follow new output tokens."""
        rules = self._rules
        if rules.top_p_decay == 1.0:
            return
        for token in tokens:
            decayed = max(self.value * rules.top_p_decay, rules.top_p_min)
            self.value = self._initial if token == rules.top_p_reset_ids else decayed


def _padded_bias(rules: LogitsRules, row_elements: int) -> Array | None:
    if rules.embedding_bias is None:
        return None
    bias = np.frombuffer(rules.embedding_bias, np.float32)
    return np.append(bias, np.zeros(row_elements - len(bias), np.float32))


def _bias_records(rules: LogitsRules) -> Array:
    records = np.zeros(len(rules.logit_bias), RECORD)
    records["factor"] = 1.0
    for record, (token, bias) in zip(records, rules.logit_bias, strict=True):
        record["token"], record["add"] = token, bias
    return records


def _ban_records(tokens: list[int]) -> Array:
    records = np.zeros(len(tokens), RECORD)
    records["token"] = tokens
    records["factor"] = 1.0
    records["subtract"] = np.inf
    return records
