"""Guides and logits processors: answers that follow a grammar, and functions that choose tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import MakeTinyLlama
from tests.e2e.sampling_engine import PROMPTS, build_tiny_engine
from tidemill.api.llm import LLM, GuidedDecodingParams, SamplingParams
from tidemill.base.errors import InvalidRequestError
from tidemill.runtime.executor.cpu import NativeExecutor
from tidemill.runtime.loop import Loop
from tidemill.runtime.request import FinishReason, Request

SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}, "kind": {"enum": ["a", "b"]}},
    "required": ["ok", "kind"],
    "additionalProperties": False,
}
GRAMMAR = 'root ::= item ("," item)*\nitem ::= "yes" | "no"'


@pytest.fixture(scope="module")
def engine_dir(make_tiny_llama: MakeTinyLlama, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_engine(make_tiny_llama, tmp_path_factory.mktemp("guided")).engine_dir


@pytest.fixture(scope="module")
def llm(engine_dir: Path) -> Iterator[LLM]:
    with LLM(engine_dir, num_threads=1) as llm:
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


class BreakingGuide:
    """Allows everything until it has followed two tokens, then fails."""

    def __init__(self) -> None:
        self.num_taken = 0

    def allowed(self) -> bytes:
        if self.num_taken == 2:
            raise ValueError("this grammar cannot be followed any further")
        return b"\xff" * 64

    def copy(self) -> BreakingGuide:
        return BreakingGuide()

    def take(self, token: int) -> None:
        self.num_taken += 1


def run_beside(executor: NativeExecutor, guide: BreakingGuide | None) -> dict[int, list[int]]:
    """Run four requests, the third with the guide; each one's tokens and last reason's number."""
    loop = Loop(executor)
    for number, prompt in enumerate(PROMPTS):
        loop.submit(Request(number, tuple(prompt), 8, guide=guide if number == 2 else None))
    told: dict[int, list[int]] = {number: [] for number in range(len(PROMPTS))}
    while loop.has_work:
        for update in loop.step():
            told[update.request_id].extend(update.new_tokens)
            if update.finish_reason is not FinishReason.NOT_FINISHED:
                told[update.request_id].append(-update.finish_reason.value)
    assert loop.stats().used_blocks == 0
    return told


def test_guide_that_fails_in_a_step_ends_its_own_request_only(engine_dir: Path) -> None:
    executor = NativeExecutor.load(engine_dir, kv_cache_tokens=512, num_threads=1)
    whole, broken = run_beside(executor, None), run_beside(executor, BreakingGuide())
    executor.close()
    assert broken.pop(2) == [*whole.pop(2)[:2], -FinishReason.CANCELLED.value]
    assert broken == whole
