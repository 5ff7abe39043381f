"""The sample model through the real server gives what the engine itself gives, token for token."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.triton.conftest import Served
from tests.triton.http_calls import call
from tidemill.frontends.triton.client import stream_generate
from tidemill.host.messages import GenerateRequest, Update
from tidemill.host.session import Session
from tidemill.runtime.logits_rules import LogitsRules
from tidemill.runtime.observation import OutputWishes

PROMPTS = ["The tide turns", "A mill needs water because", "def fibonacci(n):", "Once upon a time"]
MAX_TOKENS = 24


@pytest.fixture(scope="module")
def session(served: Served) -> Iterator[Session]:
    """The same engine in this process: the judge."""
    session = Session.open(served.sample_engine)
    yield session
    session.close()


def generate(session: Session, **request: Any) -> Update:
    session.submit(GenerateRequest(request_id="judge", max_tokens=MAX_TOKENS, **request))
    updates: list[Update] = []
    while session.has_work:
        updates += session.step()
    assert updates[-1].error is None
    return updates[-1]


def ask(served: Served, model: str, **payload: Any) -> Any:
    status, answer = call(f"{served.server.endpoints.http_url}/v2/models/{model}/generate", payload)
    assert status == 200, answer
    return answer


def stream(served: Served, prompt: str, **extra: Any) -> list[dict[str, Any]]:
    payload = {"text_input": prompt, "max_tokens": MAX_TOKENS, "stream": True, **extra}
    return list(stream_generate(served.server.endpoints.http_url, "sample", payload))


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_text_equals_the_engines_own(served: Served, session: Session, prompt: str) -> None:
    judge = generate(session, prompt=prompt)
    answer = ask(served, "sample", text_input=prompt, max_tokens=MAX_TOKENS, return_output_ids=True)
    assert answer["text_output"] == prompt + judge.text
    assert answer["output_ids"] == judge.token_ids
    assert answer["num_input_tokens"] == judge.num_input_tokens


def test_rules_and_log_probabilities_reach_the_engine(served: Served, session: Session) -> None:
    prompt = PROMPTS[0]
    rules = LogitsRules(repetition_penalty=1.3, presence_penalty=0.5, min_tokens=5)
    judge = generate(
        session,
        prompt=prompt,
        rules=rules,
        bad_words=[" water"],
        wishes=OutputWishes(num_logprobs=0),
        guide=("regex", "[a-z ]+"),
    )
    answer = ask(
        served,
        "sample",
        text_input=prompt,
        max_tokens=MAX_TOKENS,
        repetition_penalty=1.3,
        presence_penalty=0.5,
        min_tokens=5,
        bad_words=[" water"],
        return_log_probs=True,
        return_output_ids=True,
        guided_decoding_guide_type="regex",
        guided_decoding_guide="[a-z ]+",
    )
    assert answer["output_ids"] == judge.token_ids
    assert re.fullmatch("[a-z ]+", answer["text_output"].removeprefix(prompt))
    told = [entries[0][1] for entries in judge.logprobs]
    assert answer["output_log_probs"] == pytest.approx(told, abs=1e-5)
    assert answer["cum_log_probs"] == pytest.approx(judge.cumulative_logprob, abs=1e-4)


def test_concurrent_streams_give_the_same_text_as_one_alone(
    served: Served, session: Session
) -> None:
    alone = [generate(session, prompt=prompt).text for prompt in PROMPTS]

    def joined(prompt: str) -> str:
        return "".join(event["text_output"] for event in stream(served, prompt))

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(joined, PROMPTS * 2)) == alone * 2


def test_sampled_text_depends_on_its_seed_alone(served: Served, session: Session) -> None:
    sampling = {"temperature": 0.8, "top_k": 40, "top_p": 0.95}
    judge = generate(session, prompt=PROMPTS[0], seed=11, **sampling)
    texts = [
        "".join(event["text_output"] for event in stream(served, PROMPTS[0], seed=seed, **sampling))
        for seed in (11, 12)
    ]
    assert texts[0] == judge.text
    assert texts[1] != texts[0]


@pytest.mark.parametrize("model", ["sample_tokens", "llama2_7b"])
def test_packed_prompts_give_each_the_tokens_it_has_alone(
    served: Served, session: Session, model: str
) -> None:
    tokenizer = session.tokenizer
    assert tokenizer is not None
    prompts = [tokenizer.encode(prompt) for prompt in PROMPTS[:3]]
    judges = [generate(session, prompt_tokens=prompt).token_ids for prompt in prompts]
    answer = ask(
        served,
        model,
        input_ids=[token for prompt in prompts for token in prompt],
        input_lengths=[len(prompt) for prompt in prompts],
        request_output_len=MAX_TOKENS,
    )
    assert answer["output_ids"] == [token for judge in judges for token in judge]
    assert answer["output_lengths"] == [len(judge) for judge in judges]


def test_prompt_over_the_engines_limit_names_the_limit(served: Served) -> None:
    status, answer = call(
        f"{served.server.endpoints.http_url}/v2/models/sample/generate",
        {"text_input": "word " * 600, "max_tokens": 4},
    )
    assert status == 400 and "512" in answer["error"]
