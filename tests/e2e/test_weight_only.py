"""Weight-only int8 checkpoints: TensorRT-LLM's numbers and layout, and engines made of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.compare import assert_same_bits
from tests.conftest import MakeTinyLlama
from tests.tiny_llama import TinyLlama
from tidemill.api.build import BuildRequest, build
from tidemill.api.convert import ConvertRequest, convert
from tidemill.api.verify import verify_engine
from tidemill.base.dtypes import DType
from tidemill.base.errors import CheckpointError, ConfigError, UnsupportedError
from tidemill.checkpoint.checkpoint import Checkpoint
from tidemill.engine.reader import EngineFile

MATRIX = "transformer.layers.1.attention.dense"
UNTIED = TinyLlama(is_tied=False, has_attention_bias=True)


def convert_int8(source: Path, to: Path, **settings: int | str) -> Path:
    convert(ConvertRequest(source, to, use_weight_only=True, **settings))  # type: ignore[arg-type]
    return to


def test_levels_and_scales_are_those_of_the_published_formula(
    tiny_llama: Path, tmp_path: Path
) -> None:
    convert(ConvertRequest(tiny_llama, tmp_path / "plain", dtype="float32"))
    plain = load_file(tmp_path / "plain" / "rank0.safetensors")
    stored = load_file(
        convert_int8(tiny_llama, tmp_path / "int8", dtype="float16") / "rank0.safetensors"
    )
    weight = plain[f"{MATRIX}.weight"].astype(np.float64)
    scales = (np.abs(weight).max(axis=1) / 128).astype(np.float16)
    assert_same_bits(stored[f"{MATRIX}.per_channel_scale"], scales)
    levels = np.clip(np.rint(weight / scales.astype(np.float64)[:, None]), -128, 127)
    got = stored[f"{MATRIX}.weight"]
    assert got.dtype == np.int8 and got.shape == weight.shape[::-1]
    assert (levels != got.T).mean() < 1e-3 and np.abs(got.T - levels).max() <= 1
    for name in ("transformer.vocab_embedding", "transformer.layers.0.input_layernorm"):
        assert stored[f"{name}.weight"].dtype == np.float16
    config = json.loads((tmp_path / "int8" / "config.json").read_text())
    assert config["quantization"]["quant_algo"] == "W8A16"
    assert config["disable_weight_only_quant_plugin"] is True


@pytest.mark.parametrize(("tp_size", "pp_size"), [(1, 2), (2, 1), (2, 2)])
def test_any_layout_holds_the_same_levels(
    make_tiny_llama: MakeTinyLlama, tmp_path: Path, tp_size: int, pp_size: int
) -> None:
    model = make_tiny_llama(UNTIED)
    whole = Checkpoint.open(convert_int8(model, tmp_path / "whole"))
    split = Checkpoint.open(
        convert_int8(model, tmp_path / "split", tp_size=tp_size, pp_size=pp_size)
    )
    # A checkpoint with int8 layers keeps them to the bit when it is laid out anew.
    convert(ConvertRequest(split.directory, tmp_path / "again"))
    again = Checkpoint.open(tmp_path / "again")
    assert whole.dtype(f"{MATRIX}.weight") is DType.Q8
    for name in whole.tensor_names():
        assert_same_bits(split.read(name), whole.read(name), name)
        assert_same_bits(again.read(name), whole.read(name), name)


def test_engine_runs_the_checkpoints_levels_and_agrees_with_it(
    make_tiny_llama: MakeTinyLlama, tmp_path: Path
) -> None:
    checkpoint = convert_int8(make_tiny_llama(UNTIED), tmp_path / "int8", dtype="bfloat16")
    report = build(BuildRequest(checkpoint, tmp_path / "engine", max_seq_len=64))
    assert (report.build_config["quant"], report.build_config["quant_head"]) == ("w8a16", "none")
    assert verify_engine(tmp_path / "engine", checkpoint).is_same_token
    report = build(BuildRequest(checkpoint, tmp_path / "w8a8", max_seq_len=64, quant="w8a8"))
    assert report.build_config["quant_head"] == "w8a8"
    verify_engine(tmp_path / "w8a8", checkpoint)


def test_config_that_asks_for_int8_makes_plain_weights_int8_at_build(
    tiny_llama: Path, tmp_path: Path
) -> None:
    convert(ConvertRequest(tiny_llama, tmp_path / "plain", dtype="bfloat16"))
    edit_config(tmp_path / "plain", quantization={"quant_algo": "W8A16"})
    report = build(BuildRequest(tmp_path / "plain", tmp_path / "engine", max_seq_len=64))
    assert report.build_config["quant"] == "w8a16"
    assert "q8[" in EngineFile.open(tmp_path / "engine").manifest.graph_text


def edit_config(checkpoint: Path, **values: object) -> None:
    path = checkpoint / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_weights_permuted_for_a_gpu_are_refused(tiny_llama: Path, tmp_path: Path) -> None:
    checkpoint = convert_int8(tiny_llama, tmp_path / "int8")
    edit_config(checkpoint, disable_weight_only_quant_plugin=False)
    with pytest.raises(UnsupportedError, match="permuted for one GPU's kernels"):
        Checkpoint.open(checkpoint)


def test_scale_is_missing(tiny_llama: Path, tmp_path: Path) -> None:
    checkpoint = convert_int8(tiny_llama, tmp_path / "int8")
    path = checkpoint / "rank0.safetensors"
    shutil.copy(path, tmp_path / "copy")
    tensors = load_file(tmp_path / "copy")
    del tensors[f"{MATRIX}.per_channel_scale"]
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=f"{MATRIX}.per_channel_scale is missing"):
        Checkpoint.open(checkpoint)


def test_levels_of_another_type(tiny_llama: Path, tmp_path: Path) -> None:
    checkpoint = convert_int8(tiny_llama, tmp_path / "int8")
    path = checkpoint / "rank0.safetensors"
    tensors = load_file(path)
    tensors[f"{MATRIX}.weight"] = tensors[f"{MATRIX}.weight"].astype(np.float16)
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=f"{MATRIX}.weight has type F16, expected I8"):
        Checkpoint.open(checkpoint)


def test_int8_layers_cannot_be_built_unquantised(tiny_llama: Path, tmp_path: Path) -> None:
    checkpoint = convert_int8(tiny_llama, tmp_path / "int8")
    with pytest.raises(ConfigError, match="int8 already"):
        build(BuildRequest(checkpoint, tmp_path / "engine", quant="none"))
    assert not (tmp_path / "engine").exists()


def test_int4_is_stored_plainly_and_quantised_by_group_at_build(
    make_tiny_llama: MakeTinyLlama, tmp_path: Path
) -> None:
    model = make_tiny_llama(TinyLlama(hidden_size=96, head_size=16, intermediate_size=160))
    checkpoint = convert_int8(
        model, tmp_path / "int4", dtype="bfloat16", weight_only_precision="int4"
    )
    config = json.loads((checkpoint / "config.json").read_text())
    assert config["quantization"]["quant_algo"] == "W4A16"
    report = build(BuildRequest(checkpoint, tmp_path / "engine", max_seq_len=64))
    settings = report.build_config
    assert (settings["quant"], settings["quant_head"]) == ("w4a16_g32", "none")
    assert (report.chosen_by["quant"], report.chosen_by["quant_head"]) == ("checkpoint", "default")
    assert verify_engine(tmp_path / "engine", checkpoint).is_same_token
    # What TensorRT-LLM itself writes: symmetric, with its default of 128, which does not divide.
    edit_config(checkpoint, quantization={"quant_algo": "W4A16", "group_size": 128})
    with pytest.raises(UnsupportedError, match="groups do not divide"):
        build(BuildRequest(checkpoint, tmp_path / "other", max_seq_len=64))
    report = build(BuildRequest(checkpoint, tmp_path / "other", quant="w4a8_g32_sym"))
    assert report.build_config["quant_head"] == "w8a8" and report.chosen_by["quant"] == "user"


def test_int4_weights_that_are_packed_for_a_gpu_are_refused(
    tiny_llama: Path, tmp_path: Path
) -> None:
    checkpoint = convert_int8(tiny_llama, tmp_path / "int8")
    edit_config(checkpoint, quantization={"quant_algo": "W4A16"})
    with pytest.raises(UnsupportedError, match="int4 weights are permuted"):
        Checkpoint.open(checkpoint)


@pytest.mark.parametrize("algorithm", [None, "NO_QUANT"])
def test_scales_that_the_config_does_not_explain_are_refused(
    tiny_llama: Path, tmp_path: Path, algorithm: str | None
) -> None:
    checkpoint = convert_int8(tiny_llama, tmp_path / "int8")
    edit_config(checkpoint, quantization={"quant_algo": algorithm})
    with pytest.raises(UnsupportedError, match="does not say what their elements are") as caught:
        Checkpoint.open(checkpoint)
    assert caught.value.got == str(algorithm)


def test_other_precisions_are_refused(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="weight_only_precision int3"):
        convert_int8(tiny_llama, tmp_path / "int3", weight_only_precision="int3")
