"""Builds of tiny checkpoints: one engine whatever way the checkpoint took; the judge's tokens."""

from __future__ import annotations

from pathlib import Path
from threading import Event

import pytest
import torch
from transformers import LlamaForCausalLM

from tests.conftest import MakeTinyLlama
from tests.tiny_llama import TinyLlama
from tidemill.api.build import BuildRequest, build
from tidemill.api.convert import ConvertRequest, convert
from tidemill.api.llm import LLM, SamplingParams
from tidemill.api.verify import verify_engine
from tidemill.base.target import NAME_TO_TARGET, host_targets
from tidemill.engine.reader import EngineFile
from tidemill.ir.text import parse_graph
from tidemill.ops.linear import LINEAR_KINDS

HOST_TARGETS = {target.name for target in host_targets()}


@pytest.mark.parametrize(("tp_size", "pp_size"), [(2, 1), (1, 2), (2, 2)])
def test_engine_of_split_checkpoint_is_the_engine_of_the_whole_one(
    tiny_llama: Path, tmp_path: Path, tp_size: int, pp_size: int
) -> None:
    convert(ConvertRequest(tiny_llama, tmp_path / "whole", dtype="bfloat16"))
    split_up = ConvertRequest(
        tiny_llama, tmp_path / "split", dtype="bfloat16", tp_size=tp_size, pp_size=pp_size
    )
    convert(split_up)
    built = [
        build(BuildRequest(tmp_path / name, tmp_path / f"{name}-engine", max_seq_len=64))
        for name in ("whole", "split")
    ]
    engines = [EngineFile.open(report.engine_dir) for report in built]
    assert engines[1].config["pretrained_config"]["mapping"]["world_size"] == 1
    whole, split = (engine.manifest for engine in engines)
    assert whole.sections["weights"] == split.sections["weights"]
    assert whole.sections["code"] == split.sections["code"]
    assert whole.plan == split.plan and whole.graph_text == split.graph_text
    assert not built[0].notes and "were joined into one engine" in built[1].notes[-1]


@pytest.mark.parametrize(
    "shape",
    [
        TinyLlama(head_size=4),
        TinyLlama(head_size=8, has_attention_bias=True, is_tied=False),
        TinyLlama(head_size=20, num_heads=3, num_kv_heads=3, hidden_size=54, vocab_size=271),
        TinyLlama(head_size=64, num_heads=2, num_kv_heads=1, intermediate_size=37, num_layers=1),
    ],
    ids=lambda shape: f"head_size_{shape.head_size}",
)
def test_float32_engine_of_any_head_width_gives_the_tokens_of_transformers(
    make_tiny_llama: MakeTinyLlama, tmp_path: Path, shape: TinyLlama
) -> None:
    model_dir = make_tiny_llama(shape)
    convert(ConvertRequest(model_dir, tmp_path / "checkpoint", dtype="float32"))
    build(BuildRequest(tmp_path / "checkpoint", tmp_path / "engine", max_seq_len=96))
    prompts = [[5, 9, 200], [7] * 40, list(range(3, 60))]
    judge = LlamaForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    with LLM(tmp_path / "engine", num_threads=2) as llm:
        answers = llm.generate(prompts, SamplingParams(max_tokens=24, ignore_eos=True))
    for prompt, answer in zip(prompts, answers, strict=True):
        tokens = answer.outputs[0].token_ids
        assert len(tokens) == 24
        with torch.no_grad():
            logits = judge(torch.tensor([prompt + tokens])).logits[0]
        expected = logits[len(prompt) - 1 : -1].argmax(-1).tolist()
        assert tokens == expected


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("quant", ["w8a8", "w8a16"])
def test_quantised_engine_agrees_with_its_checkpoint_and_stores_a_byte_for_each_weight(
    tiny_llama: Path, tmp_path: Path, quant: str, dtype: str
) -> None:
    convert(ConvertRequest(tiny_llama, tmp_path / "checkpoint", dtype=dtype))
    plain = build(BuildRequest(tmp_path / "checkpoint", tmp_path / "plain", max_seq_len=64))
    request = BuildRequest(
        tmp_path / "checkpoint", tmp_path / "engine", max_seq_len=64, quant=quant
    )
    report = build(request)
    assert report.weights_bytes < plain.weights_bytes * 0.75
    assert report.build_config["quant"] == report.build_config["quant_head"] == quant
    verified = verify_engine(tmp_path / "engine", tmp_path / "checkpoint")
    assert len(verified.errors) > 10


def test_engine_of_12_bits_is_smaller_and_holds_the_weights_of_its_checkpoint(
    tiny_llama: Path, tmp_path: Path
) -> None:
    convert(ConvertRequest(tiny_llama, tmp_path / "checkpoint", dtype="bfloat16"))
    reports = {
        quant: build(
            BuildRequest(tmp_path / "checkpoint", tmp_path / quant, max_seq_len=64, quant=quant)
        )
        for quant in ("none", "w12a16")
    }
    assert reports["w12a16"].weights_bytes < reports["none"].weights_bytes * 0.9
    # The judge multiplies the checkpoint's own bf16 weights, with nothing left out.
    verified = verify_engine(tmp_path / "w12a16", tmp_path / "checkpoint")
    assert "bounds: 0.015 alone, 0.06 along the chain" in str(verified)
    settings = SamplingParams(max_tokens=24, ignore_eos=True)
    answers = []
    for quant in reports:
        with LLM(tmp_path / quant) as llm:
            answers.append(llm.generate([[5, 9, 200], [7] * 30], settings))
    for plain, packed in zip(*answers, strict=True):
        assert packed.outputs[0].token_ids == plain.outputs[0].token_ids


@pytest.mark.parametrize("target", sorted(set(NAME_TO_TARGET) - HOST_TARGETS))
def test_every_scheme_compiles_for_targets_that_this_machine_cannot_run(
    make_tiny_llama: MakeTinyLlama, tmp_path: Path, target: str
) -> None:
    shape = TinyLlama(num_layers=1, hidden_size=64, head_size=16, num_heads=4, intermediate_size=64)
    convert(ConvertRequest(make_tiny_llama(shape), tmp_path / "checkpoint", dtype="bfloat16"))
    for quant, head in (("w4a8_g64", "w4a16_g32"), ("w4a16_g64", "w4a8_g64_sym")):
        directory = tmp_path / quant
        request = BuildRequest(
            tmp_path / "checkpoint",
            directory,
            max_seq_len=64,
            target=target,
            quant=quant,
            quant_head=head,
        )
        assert build(request).target == target


def test_what_threads_copy_is_read_by_the_next_layer_alone_and_not_written_over(
    tiny_llama: Path, tmp_path: Path
) -> None:
    """No barrier follows such an op: another thread may still read what it was made from."""
    convert(ConvertRequest(tiny_llama, tmp_path / "checkpoint", dtype="bfloat16"))
    request = BuildRequest(tmp_path / "checkpoint", tmp_path / "engine", quant="w8a8")
    manifest = EngineFile.open(build(request).engine_dir).manifest
    ops, plan = parse_graph(manifest.graph_text).ops, manifest.plan
    place = {b.name: range(b.offset_bytes, b.offset_bytes + b.size_bytes) for b in manifest.buffers}
    making = [index for index, op in enumerate(plan) if op.made_copies]
    assert {ops[index].kind for index in making} == {"rms_norm", "quantize"}
    for index in making:
        made, after = ops[index], ops[index + 1]
        (reader,) = (number for number, op in enumerate(ops) if made.outputs[0] in op.inputs)
        assert ops[reader].kind in LINEAR_KINDS and made.outputs[0] == ops[reader].inputs[0]
        assert plan[reader].read_copies == plan[index].made_copies
        read, written = (place[each.name] for each in (made.inputs[0], after.outputs[0]))
        assert read.stop <= written.start or written.stop <= read.start


def test_build_that_is_stopped_does_not_wait_for_its_compiler(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_end, has_ended = Event(), Event()

    def compile_for_long(*_: object) -> None:
        may_end.wait(30)
        has_ended.set()

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    convert(ConvertRequest(tiny_llama, tmp_path / "checkpoint"))
    monkeypatch.setattr("tidemill.api.build.compile_module", compile_for_long)
    with pytest.raises(KeyboardInterrupt):
        build(BuildRequest(tmp_path / "checkpoint", tmp_path / "engine"), stop)
    assert not has_ended.is_set()
    may_end.set()
