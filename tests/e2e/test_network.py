"""The drawn Llama graph, run by the interpreter, against transformers in float32."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.conftest import MakeTinyLlama, Sample
from tests.tiny_llama import TinyLlama
from tidemill.api.convert import ConvertRequest, convert
from tidemill.builder.pipelines.cpu import run_cpu_pipeline
from tidemill.checkpoint.checkpoint import Checkpoint
from tidemill.ir.graph import Graph
from tidemill.network.models.llama import LlamaGraphConfig, draw_llama
from tidemill.ops.batch import Batch, KvStore, Numerics
from tidemill.ops.interpreter import interpret, load_constants

LLAMA3 = (
    ("rope_type", "llama3"),
    ("factor", 8.0),
    ("low_freq_factor", 1.0),
    ("high_freq_factor", 4.0),
    ("original_max_position_embeddings", 64),
)
ODD = TinyLlama(intermediate_size=37, vocab_size=271, hidden_size=54, head_size=16)
SHAPES = {
    "grouped_heads_tied": TinyLlama(),
    "untied_odd_sizes": replace(ODD, is_tied=False),
    "biases_everywhere": replace(
        ODD, head_size=48, num_heads=3, num_kv_heads=1, has_attention_bias=True, has_mlp_bias=True
    ),
    "llama3_scaling_full_heads": replace(
        ODD, head_size=32, num_heads=2, num_kv_heads=2, rope_scaling=LLAMA3, rope_theta=500000.0
    ),
    "window": replace(ODD, sliding_window=17),
    "window_in_some_layers": replace(
        ODD,
        num_layers=3,
        sliding_window=5,
        layer_types=("sliding_attention", "full_attention", "sliding_attention"),
    ),
    "linear_scaling": replace(ODD, rope_scaling=(("rope_type", "linear"), ("factor", 3.0))),
}
MAX_SEQ_LEN = 160


def draw(model_dir: Path, work_dir: Path, dtype: str = "float32") -> Graph:
    convert(ConvertRequest(model_dir=model_dir, output_dir=work_dir / "checkpoint", dtype=dtype))
    checkpoint = Checkpoint.open(work_dir / "checkpoint")
    config = LlamaGraphConfig.from_checkpoint(checkpoint.config)
    return draw_llama(config, checkpoint, MAX_SEQ_LEN)


def one_sequence(tokens: np.ndarray[Any, Any], start: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    rows = np.arange(len(tokens), dtype=np.int32)
    return {"tokens": tokens, "positions": start + rows, "logit_rows": rows}


def random_tokens(shape: TinyLlama, count: int, seed: int) -> np.ndarray[Any, Any]:
    print(f"seed {seed}")
    return np.random.default_rng(seed).integers(0, shape.vocab_size, count).astype(np.int32)


def reference_logits(
    model_dir: Path, tokens: np.ndarray[Any, Any], weight_dtype: str = "float32"
) -> np.ndarray[Any, Any]:
    """Compute in float32, with weights as `weight_dtype` holds them."""
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    for parameter in model.parameters():
        parameter.data = parameter.data.to(getattr(torch, weight_dtype)).float()
    with torch.no_grad():
        out = model(torch.from_numpy(tokens.astype(np.int64))[None]).logits[0].numpy()
    return np.asarray(out)


def worst_relative(got: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> float:
    assert got.shape == expected.shape
    return float(np.abs(got - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("name", SHAPES)
def test_drawn_graph_gives_the_logits_of_transformers(
    name: str, make_tiny_llama: MakeTinyLlama, tmp_path: Path
) -> None:
    model_dir = make_tiny_llama(SHAPES[name])
    graph = draw(model_dir, tmp_path)
    tokens = random_tokens(SHAPES[name], 131, seed=5)
    expected = reference_logits(model_dir, tokens)

    drawn = interpret(graph, one_sequence(tokens), Batch((0, 131), (0,)))
    assert worst_relative(drawn["logits"], expected) < 1e-4
    fused = interpret(run_cpu_pipeline(graph), one_sequence(tokens), Batch((0, 131), (0,)))
    assert worst_relative(fused["logits"], expected) < 1e-4


@pytest.mark.parametrize("is_fused", [False, True])
def test_chunks_and_decode_steps_in_a_crowd_give_the_logits_of_one_prefill(
    is_fused: bool, make_tiny_llama: MakeTinyLlama, tmp_path: Path
) -> None:
    shape = SHAPES["grouped_heads_tied"]
    graph = draw(make_tiny_llama(shape), tmp_path)
    graph = run_cpu_pipeline(graph) if is_fused else graph
    numerics = Numerics(np.float64)
    constants = load_constants(graph, numerics)
    lengths = (17, 5)
    sequences = [random_tokens(shape, length, seed=length) for length in lengths]
    alone = [
        interpret(graph, one_sequence(each), Batch((0, len(each)), (0,)), constants, None, numerics)
        for each in sequences
    ]

    store = KvStore()
    done = [0, 0]
    # Tokens that each of the two advances in each step: chunks, single tokens, and pauses.
    for advance in ((7, 0), (8, 1), (1, 3), (1, 1)):
        who = [each for each in (0, 1) if advance[each]]
        chunks = [sequences[each][done[each] : done[each] + advance[each]] for each in who]
        batch = Batch(
            np.cumsum([0, *(advance[each] for each in who)]).tolist(),
            [done[each] for each in who],
            store,
            who,
        )
        parts = [one_sequence(c, done[each]) for each, c in zip(who, chunks, strict=True)]
        inputs = {
            name: np.concatenate([part[name] for part in parts]) for name in ("tokens", "positions")
        }
        inputs["logit_rows"] = np.arange(len(inputs["tokens"]), dtype=np.int32)
        logits = interpret(graph, inputs, batch, constants, None, numerics)["logits"]
        for each, first, last in zip(
            who, batch.sequence_starts, batch.sequence_starts[1:], strict=False
        ):
            expected = alone[each]["logits"][done[each] : done[each] + advance[each]]
            assert worst_relative(logits[first:last], expected) < 1e-12
            done[each] += advance[each]
    assert tuple(done) == lengths


# What rounding activations and cached keys and values to bf16 (8 bits), or only the latter to f16
# (11 bits), does to the logits of this toy of std 0.3: about a third of each bound.
@pytest.mark.parametrize(("dtype", "rounding_bound"), [("bfloat16", 0.06), ("float16", 0.0045)])
def test_narrow_weights_give_the_logits_of_transformers_with_the_same_weights(
    dtype: str, rounding_bound: float, make_tiny_llama: MakeTinyLlama, tmp_path: Path
) -> None:
    shape = SHAPES["grouped_heads_tied"]
    model_dir = make_tiny_llama(shape)
    graph = run_cpu_pipeline(draw(model_dir, tmp_path, dtype))
    tokens = random_tokens(shape, 33, seed=9)
    expected = reference_logits(model_dir, tokens, dtype)

    wide = interpret(graph, one_sequence(tokens), Batch((0, 33), (0,)))
    assert worst_relative(wide["logits"], expected) < 1e-4
    numerics = Numerics(round_activations=True)
    rounded = interpret(graph, one_sequence(tokens), Batch((0, 33), (0,)), numerics=numerics)
    assert worst_relative(rounded["logits"], expected) < rounding_bound


def test_sample_model_continues_as_transformers_would(sample: Sample) -> None:
    checkpoint = Checkpoint.open(sample.checkpoint)
    config = LlamaGraphConfig.from_checkpoint(checkpoint.config)
    graph = run_cpu_pipeline(draw_llama(config, checkpoint, 64))
    # "The capital of France is", then " Paris", in the sample's vocabulary.
    tokens = np.array([504, 3575, 282, 4649, 314], dtype=np.int32)
    values = interpret(graph, one_sequence(tokens), Batch((0, 5), (0,)))
    assert values["next_tokens"][-1] == 7042
