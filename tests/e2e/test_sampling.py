"""Sampling rules through the whole runtime: against transformers, and alone as in a crowd."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import MakeTinyLlama
from tests.e2e.sampling_engine import PROMPTS, Judge, build_tiny_engine
from tidemill.api.llm import LLM, SamplingParams


@pytest.fixture(scope="module")
def judge(make_tiny_llama: MakeTinyLlama, tmp_path_factory: pytest.TempPathFactory) -> Judge:
    return build_tiny_engine(make_tiny_llama, tmp_path_factory.mktemp("sampling"))


@pytest.fixture(scope="module")
def llm(judge: Judge) -> Iterator[LLM]:
    with LLM(judge.engine_dir, num_threads=1) as llm:
        yield llm


def answer(llm: LLM, prompt: list[int], **settings: Any) -> list[int]:
    settings = {"max_tokens": 24, "ignore_eos": True, **settings}
    return llm.generate([prompt], SamplingParams(**settings))[0].outputs[0].token_ids


GREEDY_RULES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({"repetition_penalty": 1.4}, {"repetition_penalty": 1.4}),
    ({"no_repeat_ngram_size": 2}, {"no_repeat_ngram_size": 2}),
    ({"logit_bias": {7: 4.0, 9: -3.0}}, {"sequence_bias": {(7,): 4.0, (9,): -3.0}}),
]


@pytest.mark.parametrize(("own", "theirs"), GREEDY_RULES)
def test_greedy_with_rules_gives_the_tokens_of_transformers(
    judge: Judge, llm: LLM, own: dict[str, Any], theirs: dict[str, Any]
) -> None:
    for prompt in PROMPTS:
        assert answer(llm, prompt, **own) == judge.generate(prompt, 24, **theirs)[0]


def test_bad_words_never_come(judge: Judge, llm: LLM) -> None:
    for prompt in PROMPTS:
        plain = answer(llm, prompt)
        bad = [plain[0], plain[3:5]]
        found = answer(llm, prompt, bad_token_ids=bad)
        theirs = judge.generate(prompt, 24, bad_words_ids=[[plain[0]], plain[3:5]])
        assert found == theirs[0]


def test_min_tokens_puts_the_end_off(llm: LLM) -> None:
    for prompt in PROMPTS:
        plain = answer(llm, prompt)
        end = plain[2]
        first = plain.index(end)
        assert answer(llm, prompt, end_id=end, ignore_eos=False) == plain[:first]
        later = answer(llm, prompt, end_id=end, ignore_eos=False, min_tokens=9)
        assert len(later) >= 9 and end not in later


def test_stop_words_stay_in_tokens_and_leave_the_text(llm: LLM) -> None:
    for prompt in PROMPTS:
        plain = answer(llm, prompt)
        word = plain[4:6]
        end = next(n for n in range(2, 24) if plain[n - 2 : n] == word)
        params = SamplingParams(max_tokens=24, ignore_eos=True, stop_token_ids=[word])
        (output,) = llm.generate([prompt], params)[0].outputs
        assert output.token_ids == plain[:end] and output.finish_reason == "stop"
        kept = llm.tokenizer.decode(plain[: end - 2], skip_special_tokens=True)
        assert output.text == kept
        streamed = "".join(update.text for update in llm.generate_stream(prompt, params))
        assert streamed == kept


def test_stop_token_is_named_and_shown_when_asked(llm: LLM) -> None:
    plain = answer(llm, PROMPTS[0])
    stop = plain[5]
    params = SamplingParams(
        max_tokens=24, ignore_eos=True, stop_token_ids=[stop], include_stop_str_in_output=True
    )
    (output,) = llm.generate([PROMPTS[0]], params)[0].outputs
    assert output.stop_reason == stop and output.token_ids == plain[: plain.index(stop) + 1]
    assert output.text == llm.tokenizer.decode(output.token_ids, skip_special_tokens=True)


def test_rules_change_nothing_for_neighbours_and_crowds_nothing_for_rules(llm: LLM) -> None:
    params = [
        SamplingParams(
            max_tokens=20,
            ignore_eos=True,
            temperature=[None, 0.9, 1.4][number % 3],
            seed=number,
            min_p=[None, 0.02][number % 2],
            repetition_penalty=[None, 1.3, 0.8][number % 3],
            presence_penalty=[None, 0.7][number % 2],
            frequency_penalty=[None, None, 0.3][number % 3],
            no_repeat_ngram_size=[None, 2, None, 3][number % 4],
            top_p=[None, 0.9][number // 2 % 2],
            top_p_decay=[None, 0.8][number % 2],
            embedding_bias=None if number % 5 else [0.01 * (t % 7) for t in range(263)],
        )
        for number in range(20)
    ]
    prompts = [list(PROMPTS[number % len(PROMPTS)]) for number in range(20)]
    crowd = [output.outputs[0].token_ids for output in llm.generate(prompts, params)]
    alone = [
        llm.generate([prompt], own)[0].outputs[0].token_ids
        for prompt, own in zip(prompts, params, strict=True)
    ]
    assert crowd == alone
    assert len({tuple(each) for each in crowd}) > 10, "answers say little"
