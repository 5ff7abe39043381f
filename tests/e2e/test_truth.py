"""The sample model's engines against transformers: the same tokens, and logits within bounds.

The judge is transformers in float32 with the checkpoint's tensors; that the checkpoint itself says
what the GGUF file says is judged by a dequantisation written out here. Bounds are those of
docs/ACCURACY.md, which has the measurements.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.numpy import load_file

from tests.conftest import Sample, make_sample
from tests.engine_logits import forced_logits
from tests.sample_prompts import prompt_tokens
from tests.transformers_judge import TransformersJudge
from tidemill.api.llm import LLM, SamplingParams
from tidemill.runtime.executor.cpu import NativeExecutor

Array = npt.NDArray[Any]

NUM_NEW_TOKENS = 64
NUM_DECODED = 8  # of the logits that are compared, those after the prompt's own
CACHE_TOKENS = 8192
TIE = 1e-4  # of the largest logit: what two float32 computations may differ in


@dataclass(frozen=True)
class Answers:
    """Greedy answers of the float32 engine, and what the judge says at each of their positions."""

    prompts: list[list[int]]
    tokens: list[list[int]]
    judged: list[Array]

    @property
    def forced(self) -> list[list[int]]:
        """Prompts and the answers' first tokens: what every engine is given alike."""
        pairs = zip(self.prompts, self.tokens, strict=True)
        return [prompt + tokens[:NUM_DECODED] for prompt, tokens in pairs]


@pytest.fixture(scope="module")
def wide(sample_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sample]:
    """Make the sample in float32 for these tests alone: it takes more than a gigabyte of disk."""
    directory = tmp_path_factory.mktemp("wide")
    yield make_sample(sample_gguf, directory, "float32")
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def answers(wide: Sample) -> Answers:
    prompts = prompt_tokens(wide.engine)
    greedy = SamplingParams(max_tokens=NUM_NEW_TOKENS, ignore_eos=True)
    with LLM(wide.engine, kv_cache_tokens=CACHE_TOKENS) as llm:
        outputs = llm.generate(prompts, greedy)
    tokens = [output.outputs[0].token_ids for output in outputs]
    judge = TransformersJudge(wide.checkpoint)
    pairs = zip(prompts, tokens, strict=True)
    judged = [judge.logits(prompt + answer[:-1], len(answer)) for prompt, answer in pairs]
    return Answers(prompts, tokens, judged)


def engine_logits(engine: Path, answers: Answers) -> Array:
    executor = NativeExecutor.load(engine, kv_cache_tokens=CACHE_TOKENS)
    try:
        return forced_logits(executor, answers.forced, NUM_DECODED)
    finally:
        executor.close()


@dataclass(frozen=True)
class Error:
    """Worst error by the largest logit, rms error by the rms, and the share of equal argmax."""

    worst: float
    rms: float
    agreement: float

    @classmethod
    def of(cls, got: Array, judged: Array) -> Error:
        assert got.shape == judged.shape
        assert np.isfinite(got).all()
        difference = got.astype(np.float64) - judged
        return cls(
            float(np.abs(difference).max() / np.abs(judged).max()),
            float(np.sqrt(np.mean(difference**2) / np.mean(judged.astype(np.float64) ** 2))),
            float(np.mean(got.argmax(-1) == judged.argmax(-1))),
        )


# One forward pass of the judge over prompt and answer proves the whole answer: where each token is
# the judge's own choice after those before it, generating token by token would have given the same.
@pytest.mark.slow  # half a minute: 2048 tokens of the engine, 2400 of the judge, two readings
def test_float32_engine_gives_the_greedy_tokens_of_transformers(answers: Answers) -> None:
    assert len(answers.tokens) == 32
    faults = []
    for number, (tokens, judged) in enumerate(zip(answers.tokens, answers.judged, strict=True)):
        assert len(tokens) == NUM_NEW_TOKENS
        chosen = judged[np.arange(NUM_NEW_TOKENS), tokens]
        gaps = (judged.max(-1) - chosen) / np.abs(judged).max(-1)
        for at in np.flatnonzero(gaps > 0):
            print(f"prompt {number}, token {at}: a tie broken otherwise, gap {gaps[at]:.1e}")
        faults += [f"prompt {number}, token {at}" for at in np.flatnonzero(gaps > TIE)]
    assert not faults, f"not the judge's tokens: {faults}"


@pytest.mark.slow  # the fixture's half minute, if it is the first
def test_float32_logits_are_those_of_transformers(answers: Answers, wide: Sample) -> None:
    judged = np.stack([logits[: NUM_DECODED + 1] for logits in answers.judged])
    got = engine_logits(wide.engine, answers)
    error = Error.of(got, judged)
    print(error)
    assert error.worst < 1e-4
    assert error.rms < 1e-5


# (worst, rms) against the float32 judge, and against the judge with weights rounded alike.
NARROW_BOUNDS = {
    "float16": ((4e-3, 1.5e-3), (2e-3, 8e-4), torch.float16),
    "bfloat16": ((2.5e-2, 1.4e-2), (2.2e-2, 1.3e-2), torch.bfloat16),
}
LEAST_AGREEMENT = 0.97


@pytest.mark.slow  # ten seconds each: a checkpoint, an engine and a judge of that type
@pytest.mark.parametrize("dtype", NARROW_BOUNDS)
def test_narrow_logits_stay_within_the_stated_bounds(
    dtype: str, answers: Answers, wide: Sample, sample: Sample, sample_gguf: Path, tmp_path: Path
) -> None:
    narrow = sample if dtype == "bfloat16" else make_sample(sample_gguf, tmp_path, dtype)
    got = engine_logits(narrow.engine, answers)
    from_exact, same_weights, torch_dtype = NARROW_BOUNDS[dtype]
    float32 = np.stack([logits[: NUM_DECODED + 1] for logits in answers.judged])
    rounded = TransformersJudge(wide.checkpoint, torch_dtype)
    some = answers.forced[::4]
    each = np.stack([rounded.logits(tokens, NUM_DECODED + 1) for tokens in some])
    pairs = ("float32", got, float32, from_exact), ("rounded", got[::4], each, same_weights)
    for name, ours, judged, bounds in pairs:
        error = Error.of(ours, judged)
        print(f"{dtype} against {name}: {error}")
        assert error.worst < bounds[0] and error.rms < bounds[1]
        assert error.agreement > LEAST_AGREEMENT


def blocks_as_float32(raw: Array, kind: str) -> Array:
    """Undo block quantisation by its formula; Source: ggml's block_q4_1 and block_q8_0.

    A q4_1 block of 32 is f16 scale, f16 minimum and 16 bytes, of which the low halves are the
    first 16 weights: scale * q + minimum. A q8_0 block is f16 scale and 32 signed bytes.
    """
    if kind == "F32":
        return raw.view(np.float32)
    rows = raw.reshape(-1, {"Q4_1": 20, "Q8_0": 34}[kind])
    scale = rows[:, :2].copy().view(np.float16).astype(np.float32)
    if kind == "Q8_0":
        return scale * rows[:, 2:].copy().view(np.int8)
    minimum = rows[:, 2:4].copy().view(np.float16).astype(np.float32)
    nibbles = np.concatenate([rows[:, 4:] & 15, rows[:, 4:] >> 4], axis=1)
    return np.asarray(scale * nibbles + minimum)


def half_split(weight: Array, num_heads: int) -> Array:
    """GGUF interleaves the two halves of each rotated head; put them one after the other."""
    rows = weight.reshape(num_heads, -1, 2, weight.shape[-1])
    return np.ascontiguousarray(rows.swapaxes(1, 2)).reshape(weight.shape)


def test_float32_checkpoint_says_what_the_gguf_file_says(wide: Sample, sample_gguf: Path) -> None:
    stored = load_file(wide.checkpoint / "rank0.safetensors")
    raw = {tensor.name: tensor for tensor in gguf.GGUFReader(sample_gguf).tensors}

    def read(name: str) -> Array:
        tensor = raw[name]
        values = blocks_as_float32(np.asarray(tensor.data), tensor.tensor_type.name)
        return np.asarray(values.reshape([int(n) for n in tensor.shape[::-1]]))

    want = {
        "transformer.vocab_embedding.weight": read("token_embd.weight"),
        "transformer.ln_f.weight": read("output_norm.weight"),
    }
    for layer in range(30):
        theirs, ours = f"blk.{layer}.", f"transformer.layers.{layer}."
        query = half_split(read(theirs + "attn_q.weight"), 9)
        key = half_split(read(theirs + "attn_k.weight"), 3)
        want[ours + "attention.qkv.weight"] = np.concatenate(
            [query, key, read(theirs + "attn_v.weight")]
        )
        for ggml, trtllm in (
            ("attn_norm", "input_layernorm"),
            ("ffn_norm", "post_layernorm"),
            ("attn_output", "attention.dense"),
            ("ffn_gate", "mlp.fc"),
            ("ffn_up", "mlp.gate"),
            ("ffn_down", "mlp.proj"),
        ):
            want[f"{ours}{trtllm}.weight"] = read(f"{theirs}{ggml}.weight")
    assert sorted(stored) == sorted(want)
    for name, values in want.items():
        np.testing.assert_array_equal(stored[name], values, err_msg=name)
