"""The sample model through the real server gives what the engine itself gives, token for token."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc_client

from tests.triton.conftest import Served
from tests.triton.event_stream import stream_generate
from tests.triton.http_calls import call, tensor
from tidemill.host.messages import GenerateRequest, Update
from tidemill.host.session import Session
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


CLASSIC_MODELS = ("sample", "ensemble", "tensorrt_llm_bls")


def test_penalties_words_and_biases_give_the_same_text_in_every_model(served: Served) -> None:
    plain = ask(served, "sample", text_input=PROMPTS[0], max_tokens=MAX_TOKENS)["text_output"]
    first_word = plain[len(PROMPTS[0]) :].split()[0]
    for wish in (
        {"repetition_penalty": 1.3, "presence_penalty": 0.4, "frequency_penalty": 0.2},
        {"bad_words": [first_word]},
        {"embedding_bias_words": [" mill"], "embedding_bias_weights": [100.0]},
        {"min_tokens": 20, "seed": 4, "top_k": 20, "temperature": 1.2},
        {"beam_width": 2, "length_penalty": 1.0},
    ):
        wishes: dict[str, Any] = {"text_input": PROMPTS[0], "max_tokens": MAX_TOKENS, **wish}
        texts = [ask(served, model, **wishes)["text_output"] for model in CLASSIC_MODELS]
        assert texts[0] == texts[1] == texts[2]
        assert texts[0] != plain


@pytest.mark.parametrize("model", CLASSIC_MODELS[:2])
def test_log_probabilities_and_logits_have_the_contracts_shapes(
    served: Served, session: Session, model: str
) -> None:
    wishes = OutputWishes(num_logprobs=0)
    judge = generate(session, prompt=PROMPTS[0], wishes=wishes)
    inputs = [
        tensor("text_input", "BYTES", [PROMPTS[0]], [1, 1]),
        tensor("max_tokens", "INT32", [MAX_TOKENS], [1, 1]),
        *(
            tensor(f"return_{name}", "BOOL", [True], [1, 1])
            for name in ("log_probs", "context_logits", "generation_logits")
        ),
    ]
    received: queue.Queue[Any] = queue.Queue()
    with grpc_client.InferenceServerClient(served.server.endpoints.grpc_url) as client:
        client.start_stream(lambda result, error: received.put(error or result))
        client.async_stream_infer(model, [as_grpc(each) for each in inputs])
        result = received.get(timeout=60)
    vocabulary = session.limits.vocab_size
    assert result.as_numpy("context_logits").shape == (1, judge.num_input_tokens, vocabulary)
    assert result.as_numpy("generation_logits").shape == (1, 1, MAX_TOKENS, vocabulary)
    logprobs = [entries[0][1] for entries in judge.logprobs]
    np.testing.assert_array_equal(
        result.as_numpy("output_log_probs"), np.array([[logprobs]], dtype=np.float32)
    )
    np.testing.assert_allclose(result.as_numpy("cum_log_probs"), [[sum(logprobs)]], rtol=1e-5)


def as_grpc(given: dict[str, Any]) -> Any:
    """Return an input of the KServe protocol as NVIDIA's gRPC client has it."""
    dtype = {"BYTES": np.object_, "INT32": np.int32, "BOOL": np.bool_}[given["datatype"]]
    made = grpc_client.InferInput(given["name"], given["shape"], given["datatype"])
    made.set_data_from_numpy(np.array(given["data"], dtype=dtype).reshape(given["shape"]))
    return made
