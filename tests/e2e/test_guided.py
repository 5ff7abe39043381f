"""Guides and logits processors: answers that follow a grammar, and functions that choose tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from tests.conftest import MakeTinyLlama
from tests.e2e.sampling_engine import PROMPTS, build_tiny_engine
from tidemill.api.llm import LLM, GuidedDecodingParams, SamplingParams
from tidemill.base.errors import InvalidRequestError

SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}, "kind": {"enum": ["a", "b"]}},
    "required": ["ok", "kind"],
    "additionalProperties": False,
}
GRAMMAR = 'root ::= item ("," item)*\nitem ::= "yes" | "no"'


@pytest.fixture(scope="module")
def llm(make_tiny_llama: MakeTinyLlama, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    judge = build_tiny_engine(make_tiny_llama, tmp_path_factory.mktemp("guided"))
    with LLM(judge.engine_dir, num_threads=1) as llm:
        yield llm


def guided(**settings: Any) -> SamplingParams:
    names = ("json", "regex", "grammar", "json_object")
    guide = GuidedDecodingParams(**{n: settings.pop(n) for n in names if n in settings})
    return SamplingParams(**{"max_tokens": 60, **settings}, guided_decoding=guide)


@pytest.mark.parametrize("temperature", [None, 1.5])
def test_answers_follow_their_guides_in_one_crowd(llm: LLM, temperature: float | None) -> None:
    settings = {"temperature": temperature, "seed": 9}
    params = [
        guided(regex="[a-f]{4}-[0-9]{3}", **settings),
        guided(json=SCHEMA, **settings),
        guided(json=json.dumps(SCHEMA), **settings),
        guided(grammar=GRAMMAR, **settings),
        SamplingParams(max_tokens=20, ignore_eos=True),
    ]
    prompts = [list(PROMPTS[n % 4]) for n in range(5)]
    crowd = [r.outputs[0] for r in llm.generate(prompts, params)]
    assert re.fullmatch("[a-f]{4}-[0-9]{3}", crowd[0].text) and crowd[0].finish_reason == "stop"
    for output in crowd[1:3]:
        if output.finish_reason == "stop":  # a random model may fill 60 tokens with spaces
            assert set(json.loads(output.text)) == {"ok", "kind"}
        else:
            assert output.text.lstrip().startswith("{")
    assert re.match("(yes|no)(,(yes|no))*", crowd[3].text)
    for prompt, own, output in zip(prompts, params, crowd, strict=True):
        assert llm.generate([prompt], own)[0].outputs[0].token_ids == output.token_ids


def test_json_object_begins_one(llm: LLM) -> None:
    (output,) = llm.generate([PROMPTS[0]], guided(json_object=True, max_tokens=12))[0].outputs
    assert output.text.lstrip().startswith("{")


def test_each_of_n_answers_has_a_guide_of_its_own(llm: LLM) -> None:
    params = guided(regex="[a-z]{3}[0-9]{2}", n=5, temperature=2.0, seed=1)
    texts = [output.text for output in llm.generate([PROMPTS[1]], params)[0].outputs]
    assert all(re.fullmatch("[a-z]{3}[0-9]{2}", text) for text in texts), texts
    assert len(set(texts)) > 1


@pytest.mark.parametrize(
    "bad", [{"regex": "(("}, {"json": '{"type": 3}'}, {"grammar": "root ::= ("}]
)
def test_unreadable_guide_fails_its_own_request_only(llm: LLM, bad: dict[str, str]) -> None:
    with pytest.raises(InvalidRequestError, match="guide cannot be read"):
        llm.generate([PROMPTS[0]], guided(**bad))
    assert llm.generate([PROMPTS[0]])[0].outputs[0].token_ids


def only_even(
    request_id: int, logits: Any, tokens: Sequence[Sequence[int]], stream: None, client: None
) -> None:
    assert logits.shape == (1, 1, 263) and len(tokens) == 1
    logits[..., 1::2] = -float("inf")


def fails_later(
    request_id: int, logits: Any, tokens: Sequence[Sequence[int]], stream: None, client: None
) -> None:
    if len(tokens[0]) > 9:
        raise ValueError("nine is enough")


def test_processor_changes_its_own_row_only(llm: LLM) -> None:
    plain = SamplingParams(max_tokens=16, ignore_eos=True, temperature=1.0, seed=4)
    even = SamplingParams(
        max_tokens=16, ignore_eos=True, temperature=1.0, seed=4, logits_processor=only_even
    )
    crowd = llm.generate([PROMPTS[0], PROMPTS[0], PROMPTS[1]], [plain, even, plain])
    alone = [llm.generate([p], plain)[0].outputs[0] for p in (PROMPTS[0], PROMPTS[1])]
    assert [crowd[0].outputs[0], crowd[2].outputs[0]] == alone
    assert all(token % 2 == 0 for token in crowd[1].outputs[0].token_ids)


def test_failing_processor_fails_its_own_request_only(llm: LLM) -> None:
    failing = SamplingParams(max_tokens=16, ignore_eos=True, logits_processor=fails_later)
    plain = SamplingParams(max_tokens=16, ignore_eos=True)
    stream = llm.generate_stream(PROMPTS[1], plain)
    first = next(stream)
    with pytest.raises(InvalidRequestError, match="nine is enough"):
        llm.generate([PROMPTS[0]], failing)
    rest = [token for update in stream for token in update.token_ids]
    assert first.token_ids + rest == llm.generate([PROMPTS[1]], plain)[0].outputs[0].token_ids
