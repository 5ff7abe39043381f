"""Sampling rules through the whole runtime: against transformers, and alone as in a crowd."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
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


def log_softmax(logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    x = logits.astype(np.float64)
    shifted = x - x.max(-1, keepdims=True)
    found: np.ndarray[Any, Any] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return found


def test_logprobs_and_logits_are_the_models_own(judge: Judge, llm: LLM) -> None:
    prompts = [[5, 6, 7] * 20, *PROMPTS]  # the first is longer than a step and than its batch
    params = SamplingParams(
        max_tokens=7,
        ignore_eos=True,
        temperature=0.7,
        seed=3,
        repetition_penalty=1.5,
        logprobs=4,
        prompt_logprobs=2,
        return_context_logits=True,
        return_generation_logits=True,
    )
    for prompt, result in zip(prompts, llm.generate(prompts, params), strict=True):
        (output,) = result.outputs
        logits = judge.logits(prompt + output.token_ids)[:-1]
        seen = len(prompt) - 1
        assert result.context_logits is not None and output.generation_logits is not None
        np.testing.assert_allclose(result.context_logits, logits[: seen + 1], atol=2e-4)
        np.testing.assert_allclose(output.generation_logits, logits[seen:], atol=2e-4)
        expected = log_softmax(logits)
        of_prompt = output.prompt_logprobs or [None]  # the first token has none
        assert output.logprobs is not None and of_prompt[0] is None
        told = [*of_prompt[1:], *output.logprobs]
        tokens = (prompt + output.token_ids)[1:]
        for row, token, entries, number in zip(
            expected, tokens, told, [2] * seen + [4] * 7, strict=True
        ):
            assert entries is not None and next(iter(entries)) == token
            assert len(entries) in (number, number + 1)
            assert set(np.argsort(-row, kind="stable")[:number].tolist()) <= set(entries)
            for each, entry in entries.items():
                assert entry.logprob == pytest.approx(row[each], abs=2e-4)
                assert entry.rank == 1 + int((row > row[each]).sum())
        own = [next(iter(entries.values())).logprob for entries in output.logprobs]
        assert output.cumulative_logprob == pytest.approx(sum(own))


def test_looking_changes_no_token_and_no_crowd_changes_a_bit(llm: LLM) -> None:
    settings: dict[str, Any] = {"max_tokens": 9, "ignore_eos": True, "temperature": 1.2}
    plain = [SamplingParams(seed=n, **settings) for n in range(6)]
    looking = [
        SamplingParams(seed=n, logprobs=n % 3, return_context_logits=True, **settings)
        for n in range(6)
    ]
    prompts = [list(range(5 + n, 40 + 3 * n)) for n in range(6)]
    without = [r.outputs[0].token_ids for r in llm.generate(prompts, plain)]
    crowd = llm.generate(prompts, [plain[0], *looking[1:]])
    assert [r.outputs[0].token_ids for r in crowd] == without
    for prompt, own, seen in zip(prompts[1:], looking[1:], crowd[1:], strict=True):
        (alone,) = llm.generate([prompt], own)
        assert alone.outputs[0].logprobs == seen.outputs[0].logprobs
        assert alone.context_logits is not None and seen.context_logits is not None
        assert alone.context_logits.tobytes() == seen.context_logits.tobytes()


def test_end_token_has_no_logprob(llm: LLM) -> None:
    plain = answer(llm, PROMPTS[1])
    params = SamplingParams(max_tokens=24, end_id=plain[4], logprobs=0)
    (output,) = llm.generate([PROMPTS[1]], params)[0].outputs
    assert output.logprobs is not None
    assert len(output.logprobs) == len(output.token_ids) == plain.index(plain[4])
