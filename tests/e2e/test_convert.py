"""Convert, end to end: every source kind against transformers, every layout bit for bit."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_torch_file
from safetensors.torch import save_file as save_torch_file

from tests.conftest import MakeTinyLlama
from tests.sentencepiece_file import write_sentencepiece
from tests.tiny_llama import TinyLlama
from tidemill.api.convert import ConvertReport, ConvertRequest, convert
from tidemill.checkpoint.checkpoint import Checkpoint

BIASED = TinyLlama(has_attention_bias=True, has_mlp_bias=True, is_tied=False, num_layers=3)
LLAMA3 = (
    ("rope_type", "llama3"),
    ("factor", 8.0),
    ("low_freq_factor", 1.0),
    ("high_freq_factor", 4.0),
    ("original_max_position_embeddings", 64),
)

HF_TO_TRTLLM = {
    "self_attn.o_proj": "attention.dense",
    "mlp.gate_proj": "mlp.fc",
    "mlp.up_proj": "mlp.gate",
    "mlp.down_proj": "mlp.proj",
}


def _convert(model_dir: Path, output_dir: Path, **settings: Any) -> ConvertReport:
    return convert(ConvertRequest(model_dir, output_dir, **settings))


def _hf_weights(directory: Path) -> dict[str, Any]:
    weights = {}
    for path in directory.glob("*.safetensors"):
        weights.update(load_file(path))
    return weights


def _expected(hf: dict[str, Any], num_layers: int) -> dict[str, Any]:
    """The checkpoint's tensors, written out by hand from the reference's table of names."""
    want = {
        "transformer.vocab_embedding.weight": hf["model.embed_tokens.weight"],
        "transformer.ln_f.weight": hf["model.norm.weight"],
    }
    if "lm_head.weight" in hf:
        want["lm_head.weight"] = hf["lm_head.weight"]
    for layer in range(num_layers):
        old, new = f"model.layers.{layer}.", f"transformer.layers.{layer}."
        want[new + "input_layernorm.weight"] = hf[old + "input_layernorm.weight"]
        want[new + "post_layernorm.weight"] = hf[old + "post_attention_layernorm.weight"]
        for kind in ("weight", "bias"):
            names = [old + f"self_attn.{p}_proj.{kind}" for p in "qkv"]
            if names[0] in hf:
                parts = [hf[name] for name in names]
                want[new + f"attention.qkv.{kind}"] = np.concatenate(parts)
            for theirs, ours in HF_TO_TRTLLM.items():
                if old + f"{theirs}.{kind}" in hf:
                    want[new + f"{ours}.{kind}"] = hf[old + f"{theirs}.{kind}"]
    return want


def _assert_same_model(checkpoint: Checkpoint, want: dict[str, Any]) -> None:
    assert sorted(checkpoint.tensor_names()) == sorted(want)
    for name, values in want.items():
        assert checkpoint.shape(name) == values.shape, name
        np.testing.assert_array_equal(checkpoint.read(name), values, err_msg=name)


@pytest.mark.parametrize(
    "shape",
    [TinyLlama(), BIASED, TinyLlama(max_shard_size="40KB"), TinyLlama(rope_scaling=LLAMA3)],
    ids=["tied", "biased", "sharded", "llama3"],
)
def test_hf_model_becomes_the_tensors_of_the_reference(
    make_tiny_llama: MakeTinyLlama, shape: TinyLlama, tmp_path: Path
) -> None:
    source = make_tiny_llama(shape)
    report = _convert(source, tmp_path / "out", dtype="float32")
    want = _expected(_hf_weights(source), shape.num_layers)
    stored = load_file(tmp_path / "out" / "rank0.safetensors")
    assert sorted(stored) == sorted(want)
    for name, values in want.items():
        np.testing.assert_array_equal(stored[name], values, err_msg=name)
    assert report.num_tensors == len(want)
    assert report.total_bytes == sum(values.nbytes for values in want.values())
    assert report.source_kind == "huggingface"


def test_config_carries_the_fields_of_tensorrt_llm(
    make_tiny_llama: MakeTinyLlama, tmp_path: Path
) -> None:
    shape = TinyLlama(rope_scaling=LLAMA3, rope_theta=500000.0)
    _convert(make_tiny_llama(shape), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    want = {
        "architecture": "LlamaForCausalLM",
        "dtype": "float16",
        "logits_dtype": "float32",
        "vocab_size": 263,
        "max_position_embeddings": 512,
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_size": 8,
        "hidden_act": "silu",
        "intermediate_size": 104,
        "norm_epsilon": 1e-6,
        "position_embedding_type": "rope_gpt_neox",
        "rotary_base": 500000.0,
        "rotary_scaling": dict(LLAMA3),
        "tie_word_embeddings": True,
    }
    assert {key: config[key] for key in want} == want
    assert config["mapping"] == {"world_size": 1, "tp_size": 1, "pp_size": 1}
    assert config["tidemill"]["content_hash"].startswith("sha256:")


def test_tokenizer_and_generation_files_travel_with_the_weights(
    tiny_llama: Path, tmp_path: Path
) -> None:
    _convert(tiny_llama, tmp_path / "one")
    _convert(tmp_path / "one", tmp_path / "two", tp_size=2)
    names = {path.name for path in Checkpoint.open(tmp_path / "two").tokenizer_files()}
    assert {"tokenizer.json", "tokenizer_config.json", "generation_config.json"} <= names
    for name in names:
        assert (tmp_path / "two" / name).read_bytes() == (tiny_llama / name).read_bytes()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrow_types_are_rounded_as_torch_rounds(
    tiny_llama: Path, tmp_path: Path, dtype: str
) -> None:
    _convert(tiny_llama, tmp_path / "out", dtype=dtype)
    stored = load_torch_file(tmp_path / "out" / "rank0.safetensors")
    want = _expected(_hf_weights(tiny_llama), 2)
    for name, values in want.items():
        assert torch.equal(stored[name], torch.from_numpy(values).to(getattr(torch, dtype))), name


def test_auto_keeps_bfloat16_and_stores_float32_as_float16(
    make_tiny_llama: MakeTinyLlama, tiny_llama: Path, tmp_path: Path
) -> None:
    bf16 = make_tiny_llama(TinyLlama(dtype="bfloat16"))
    assert _convert(bf16, tmp_path / "a").dtype == "bfloat16"
    assert _convert(tiny_llama, tmp_path / "b").dtype == "float16"


LAYOUTS = [
    {"tp_size": 2},
    {"pp_size": 2},
    {"tp_size": 2, "pp_size": 2, "workers": 2},
    {"tp_size": 3, "pp_size": 3},
    {"tp_size": 4, "use_parallel_embedding": True},
    {"tp_size": 4, "use_parallel_embedding": True, "embedding_sharding_dim": 1},
    {"tp_size": 12, "pp_size": 2},
]


@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_any_layout_reads_and_reshards_as_one_model(
    make_tiny_llama: MakeTinyLlama, layout: dict[str, Any], is_tied: bool, tmp_path: Path
) -> None:
    # 12 query heads on 1 or 6 key-value heads: fewer, equal and more than the ranks.
    shape = TinyLlama(
        num_layers=3,
        num_heads=12,
        num_kv_heads=6 if layout.get("tp_size") == 3 else 1,
        intermediate_size=108,
        is_tied=is_tied,
        has_attention_bias=True,
        dtype="float16",
    )
    source = make_tiny_llama(shape)
    _convert(source, tmp_path / "split", **layout)
    ranks = layout.get("tp_size", 1) * layout.get("pp_size", 1)
    assert len(list((tmp_path / "split").glob("rank*.safetensors"))) == ranks
    want = _expected(_hf_weights(source), 3)
    split = Checkpoint.open(tmp_path / "split")
    assert split.config.tie_word_embeddings is is_tied
    _assert_same_model(split, want)

    _convert(source, tmp_path / "whole")
    report = _convert(tmp_path / "split", tmp_path / "rejoined")
    assert report.source_kind == "tensorrt_llm"
    name = "rank0.safetensors"
    whole, rejoined = ((tmp_path / d / name).read_bytes() for d in ("whole", "rejoined"))
    assert whole == rejoined


def test_content_hash_does_not_depend_on_the_layout(tiny_llama: Path, tmp_path: Path) -> None:
    hashes = set()
    for number, layout in enumerate(LAYOUTS[:3]):
        _convert(tiny_llama, tmp_path / str(number), **layout)
        config = Checkpoint.open(tmp_path / str(number)).config
        assert config.tidemill is not None
        hashes.add(config.tidemill["content_hash"])
    assert len(hashes) == 1


def test_untied_head_beside_a_config_that_says_tied_is_kept(
    make_tiny_llama: MakeTinyLlama, tmp_path: Path
) -> None:
    source = make_tiny_llama(TinyLlama(is_tied=False))
    _convert(source, tmp_path / "out", dtype="float32")
    path = tmp_path / "out" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "tie_word_embeddings": True}))
    checkpoint = Checkpoint.open(tmp_path / "out")
    assert not checkpoint.config.tie_word_embeddings
    _assert_same_model(checkpoint, _expected(_hf_weights(source), 2))


@pytest.mark.parametrize("style", ["huggingface", "tensorrt_llm"])
def test_custom_names_and_transposed_weights_convert_through_a_weight_map(
    tiny_llama: Path, tmp_path: Path, style: str
) -> None:
    custom = tmp_path / "custom"
    custom.mkdir()
    hf = load_torch_file(tiny_llama / "model.safetensors")
    down = "model.layers.{}.mlp.down_proj.weight"
    renamed = {name: value for name, value in hf.items() if "down_proj" not in name}
    renamed["tok"] = renamed.pop("model.embed_tokens.weight")
    for layer in range(2):
        renamed[f"h.{layer}.out"] = hf[down.format(layer)].T.contiguous()
    renamed["optimizer_step"] = torch.zeros(1)
    save_torch_file(renamed, custom / "weights.safetensors")
    (custom / "config.json").write_bytes((tiny_llama / "config.json").read_bytes())
    is_hf = style == "huggingface"
    targets = {
        "tok": "model.embed_tokens.weight" if is_hf else "transformer.vocab_embedding.weight",
        "h.{i}.out": {
            "to": down.format("{i}") if is_hf else "transformer.layers.{i}.mlp.proj.weight",
            "transpose": True,
        },
        "optimizer_step": None,
    }
    (tmp_path / "map.json").write_text(json.dumps({"tensors": targets}))
    report = _convert(custom, tmp_path / "out", weight_map=tmp_path / "map.json", dtype="float32")
    assert report.source_kind == "custom"
    _assert_same_model(Checkpoint.open(tmp_path / "out"), _expected(_hf_weights(tiny_llama), 2))


def test_config_only_writes_no_weights(tiny_llama: Path, tmp_path: Path) -> None:
    report = _convert(tiny_llama, tmp_path / "out", save_config_only=True, tp_size=2)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["config.json"]
    assert report.total_bytes == 0


def test_earlier_checkpoint_in_the_output_directory_is_replaced(
    tiny_llama: Path, tmp_path: Path
) -> None:
    _convert(tiny_llama, tmp_path / "out", tp_size=2)
    _convert(tiny_llama, tmp_path / "out")
    assert not (tmp_path / "out" / "rank1.safetensors").exists()
    Checkpoint.open(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_progress_counts_every_byte_once(tiny_llama: Path, tmp_path: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    request = ConvertRequest(tiny_llama, tmp_path / "out", tp_size=2, workers=2)
    report = convert(request, lambda *call: calls.append(call))
    done = [call[1] for call in calls]
    assert done == sorted(done)
    assert done[-1] == calls[-1][2] == report.total_bytes


def test_tokenizer_model_alone_becomes_a_tokenizer_json(tiny_llama: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    model = Path(shutil.copytree(tiny_llama, tmp_path / "model"))
    (model / "tokenizer.json").unlink()
    byte_pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    letters = ["ab", "\u2581ab", "\u2581", "a", "b", "c"]
    write_sentencepiece(model / "tokenizer.model", ["<unk>", "<s>", "</s>", *byte_pieces, *letters])
    added = {"265": {"content": "<|end|>", "special": True}}
    settings = {"add_bos_token": False, "added_tokens_decoder": added}
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    report = _convert(model, tmp_path / "out")
    assert "rebuilt" in report.notes[0]
    tokenizer = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    assert tokenizer.encode("abc ab\n<|end|>").tokens == [
        "\u2581ab", "c", "\u2581ab", "<0x0A>", "<|end|>",
    ]  # fmt: skip


def test_memory_stays_near_the_largest_tensor(
    make_tiny_llama: MakeTinyLlama, tmp_path: Path
) -> None:
    shape = TinyLlama(num_layers=9, hidden_size=252, intermediate_size=2048, vocab_size=4099)
    source = make_tiny_llama(shape)
    _convert(source, tmp_path / "warm_up", tp_size=2)
    tracemalloc.start()
    report = _convert(source, tmp_path / "out", tp_size=2, dtype="float32")
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    largest_bytes = 4099 * 252 * 4
    assert report.total_bytes > 10 * largest_bytes
    assert peak_bytes < 3 * largest_bytes
