"""Several answers to one prompt: samples by seed, the best of them, and transformers' beams."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.conftest import MakeTinyLlama
from tests.e2e.sampling_engine import PROMPTS, Judge, build_tiny_engine
from tidemill.api.llm import LLM, SamplingParams


@pytest.fixture(scope="module")
def judge(make_tiny_llama: MakeTinyLlama, tmp_path_factory: pytest.TempPathFactory) -> Judge:
    return build_tiny_engine(make_tiny_llama, tmp_path_factory.mktemp("many"))


@pytest.fixture(scope="module")
def llm(judge: Judge) -> Iterator[LLM]:
    with LLM(judge.engine_dir, num_threads=1) as llm:
        yield llm


def test_n_answers_are_those_of_n_seeds(llm: LLM) -> None:
    settings: dict[str, Any] = {"max_tokens": 12, "ignore_eos": True, "temperature": 1.1}
    for prompt in PROMPTS:
        (together,) = llm.generate([prompt], SamplingParams(n=9, seed=40, **settings))
        alone = [
            llm.generate([prompt], SamplingParams(seed=40 + place, **settings))[0].outputs[0]
            for place in range(9)
        ]
        assert [output.index for output in together.outputs] == list(range(9))
        assert [o.token_ids for o in together.outputs] == [o.token_ids for o in alone]


def test_best_of_tells_the_likeliest(llm: LLM) -> None:
    settings: dict[str, Any] = {"max_tokens": 8, "ignore_eos": True, "temperature": 1.5, "seed": 2}
    (best,) = llm.generate([PROMPTS[0]], SamplingParams(n=2, best_of=7, **settings))
    (each,) = llm.generate([PROMPTS[0]], SamplingParams(n=7, logprobs=0, **settings))
    ranked = sorted(each.outputs, key=lambda o: -(o.cumulative_logprob or 0))
    assert [o.token_ids for o in best.outputs] == [o.token_ids for o in ranked[:2]]
    assert [o.index for o in best.outputs] == [0, 1]
    assert best.outputs[0].logprobs is None


def test_streamed_answers_of_one_prompt_are_told_apart(llm: LLM) -> None:
    params = SamplingParams(n=3, max_tokens=6, ignore_eos=True, temperature=1.0, seed=1)
    (whole,) = llm.generate([PROMPTS[1]], params)
    streamed: dict[int, list[int]] = {}
    for update in llm.generate_stream(PROMPTS[1], params):
        streamed.setdefault(update.index, []).extend(update.token_ids)
    assert [streamed[n] for n in range(3)] == [output.token_ids for output in whole.outputs]


CORNERS = [(1, 0.0, 1, None), (2, 2.0, 0, 2), (4, 1.0, 1, 2), (4, 0.0, 0, None), (4, 2.0, 1, 2)]
BEAMS = [
    pytest.param(
        *(width, penalty, stopping, end),
        marks=() if (width, penalty, stopping, end) in CORNERS else pytest.mark.sweep,
    )
    for width, penalty, stopping, end in itertools.product(
        (1, 2, 4), (0.0, 1.0, 2.0), (1, 0), (None, 2)
    )
    if width > 1 or penalty == 0.0
]


@pytest.mark.parametrize(("width", "penalty", "stopping", "end"), BEAMS)
def test_beams_are_those_of_transformers(
    judge: Judge, llm: LLM, width: int, penalty: float, stopping: int, end: int | None
) -> None:
    for prompt in PROMPTS[:2]:
        end_id = None if end is None else likely_end(judge, prompt)
        params = SamplingParams(
            max_tokens=8,
            n=width,
            use_beam_search=True,
            length_penalty=penalty,
            early_stopping=stopping,
            end_id=end_id,
            ignore_eos=end_id is None,
        )
        (own,) = llm.generate([prompt], params)
        theirs = judge.generate(
            prompt,
            8,
            num_beams=width,
            num_return_sequences=width,
            length_penalty=penalty,
            early_stopping=bool(stopping),
            eos_token_id=end_id,
        )
        cut = [row[: row.index(end_id)] if end_id in row else row for row in theirs]
        assert [output.token_ids for output in own.outputs] == cut
        for output in own.outputs:
            total = output.cumulative_logprob
            assert total is not None
            ended = output.finish_reason == "stop"
            tokens = output.token_ids + ([end_id] if ended and end_id is not None else [])
            assert total == pytest.approx(sum_of_logprobs(judge, prompt, tokens), abs=1e-3)


def likely_end(judge: Judge, prompt: list[int]) -> int:
    """A token that several beams meet within a few steps."""
    rows = judge.generate(prompt, 8, num_beams=4, num_return_sequences=4)
    tokens = [token for row in rows for token in row[2:6]]
    return max(sorted(set(tokens)), key=tokens.count)


def sum_of_logprobs(judge: Judge, prompt: list[int], tokens: list[int]) -> float:
    logits = judge.logits(prompt + tokens).astype(np.float64)[len(prompt) - 1 : -1]
    shifted = logits - logits.max(-1, keepdims=True)
    logprobs = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return float(sum(row[token] for row, token in zip(logprobs, tokens, strict=True)))


def test_crowds_change_no_beam(llm: LLM) -> None:
    beams = SamplingParams(max_tokens=7, n=3, use_beam_search=True, ignore_eos=True)
    others = SamplingParams(max_tokens=20, temperature=1.0, seed=5, ignore_eos=True)
    (alone,) = llm.generate([PROMPTS[2]], beams)
    crowd = llm.generate([PROMPTS[2], *PROMPTS], [beams, others, others, beams, others])
    # What an answer cost depends on who else was there.
    found, expected = (
        [replace(output, request_perf_metrics=None) for output in answer.outputs]
        for answer in (crowd[0], alone)
    )
    assert found == expected
