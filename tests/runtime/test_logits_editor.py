"""A request's rules against transformers' logits processors, and against a plain recount."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers.generation import logits_process

from tidemill.ops.logits_edits import LogitsEdits
from tidemill.runtime.executor.logits_editor import LogitsEditor
from tidemill.runtime.logits_rules import LogitsRules
from tidemill.runtime.request import Request, SamplingParams
from tidemill.runtime.token_history import TokenHistory

VOCABULARY = 37
END_IDS = (1, 5)
Rows = list[np.ndarray[Any, Any]]


def play(rules: LogitsRules, prompt: list[int], output: list[int], seed: int = 3) -> Rows:
    """The edited logits of every step of an answer, as one editor makes them step by step."""
    live = list(prompt)
    sampling = SamplingParams(top_p=0.9, top_k=0, rules=rules)
    history = TokenHistory(Request(1, tuple(prompt), 99, sampling, END_IDS), live)
    editor, rows = LogitsEditor(history, 48), []
    for step, token in enumerate([*output, 0]):
        edits = editor.edits()
        assert edits.mask is None
        bias = None if edits.bias is None else edits.bias[:VOCABULARY]
        records = tuple(edits.records.tolist())
        rows.append(LogitsEdits(bias, records).apply(raw_logits(seed, step)))
        live.append(token)
    return rows


def raw_logits(seed: int, step: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng([seed, step]).normal(0, 3, VOCABULARY).astype(np.float32)


def judge(processor: Any, prompt: list[int], output: list[int], seed: int = 3) -> Rows:
    """The same rows, by a processor of transformers."""
    rows = []
    for step in range(len(output) + 1):
        ids = torch.tensor([prompt + output[:step]])
        scores = processor(ids, torch.tensor(raw_logits(seed, step))[None])
        rows.append(scores[0].numpy())
    return rows


def texts(seed: int) -> tuple[list[int], list[int]]:
    """A prompt and an answer from few tokens, so that words repeat."""
    rng = np.random.default_rng(seed)
    num_prompt, num_output = int(rng.integers(1, 40)), int(rng.integers(0, 90))
    return rng.integers(0, 7, num_prompt).tolist(), rng.integers(0, 7, num_output).tolist()


JUDGES: list[tuple[LogitsRules, Callable[[int], Any]]] = [
    (
        LogitsRules(repetition_penalty=1.3),
        lambda _: logits_process.RepetitionPenaltyLogitsProcessor(1.3),
    ),
    (
        LogitsRules(repetition_penalty=0.6),
        lambda _: logits_process.RepetitionPenaltyLogitsProcessor(0.6),
    ),
    *(
        (
            LogitsRules(no_repeat_ngram_size=size),
            lambda _, size=size: logits_process.NoRepeatNGramLogitsProcessor(size),
        )
        for size in (1, 2, 3, 5)
    ),
    (
        LogitsRules(bad_words=((3,), (4, 2), (6, 6), (0, 1, 2))),
        lambda _: logits_process.NoBadWordsLogitsProcessor([[3], [4, 2], [6, 6], [0, 1, 2]]),
    ),
    (
        LogitsRules(logit_bias=((3, 1.5), (0, -7.25))),
        lambda _: logits_process.SequenceBiasLogitsProcessor([[[3], 1.5], [[0], -7.25]]),
    ),
    (
        LogitsRules(min_tokens=11),
        lambda num_prompt: logits_process.MinNewTokensLengthLogitsProcessor(
            num_prompt, 11, list(END_IDS)
        ),
    ),
]


@pytest.mark.parametrize("number", range(len(JUDGES)))
def test_each_rule_does_what_transformers_does(number: int) -> None:
    rules, make_processor = JUDGES[number]
    for seed in range(12):
        prompt, output = texts(seed)
        processor = make_processor(len(prompt))
        for own, judged in zip(
            play(rules, prompt, output), judge(processor, prompt, output), strict=True
        ):
            np.testing.assert_allclose(own, judged, rtol=1e-6, atol=0)


def test_penalties_together_are_bias_then_repetition_then_presence_and_frequency() -> None:
    bias = np.random.default_rng(1).normal(0, 1, VOCABULARY).astype(np.float32)
    for seed in range(12):
        prompt, output = texts(seed)
        ignored = min(4, len(prompt))
        rules = LogitsRules(
            repetition_penalty=1.2,
            presence_penalty=0.5,
            frequency_penalty=-0.25,
            prompt_ignore_length=4,
            embedding_bias=bias.tobytes(),
            logit_bias=((2, 0.125),),
            bad_words=((4,),),
        )
        for step, own in enumerate(play(rules, prompt, output)):
            x = raw_logits(3, step).astype(np.float64) + bias
            x[2] += 0.125
            said = prompt + output[:step]
            counted = prompt[ignored:] + output[:step]
            for token in set(said):
                x[token] = x[token] * 1.2 if x[token] < 0 else x[token] / 1.2
            for token in set(counted):
                x[token] -= 0.5 - 0.25 * counted.count(token)
            x[4] = -np.inf
            np.testing.assert_allclose(own, x, rtol=1e-5, atol=1e-5)


def test_top_p_decays_to_its_floor_and_a_token_resets_it() -> None:
    rules = LogitsRules(top_p_decay=0.5, top_p_min=0.2, top_p_reset_ids=6)
    live = [6, 6]
    sampling = SamplingParams(top_p=0.8, top_k=0, rules=rules)
    editor = LogitsEditor(TokenHistory(Request(1, (6, 6), 99, sampling), live), 48)
    found = []
    for token in (3, 3, 3, 6, 3):
        found.append(editor.edits().top_p)
        live.append(token)
    assert found == [0.8, 0.4, 0.2, 0.2, 0.8]


def test_neutral_rules_edit_nothing() -> None:
    assert LogitsRules().is_neutral
    prompt, output = texts(1)
    for step, row in enumerate(play(LogitsRules(), prompt, output)):
        assert (row == raw_logits(3, step)).all()
