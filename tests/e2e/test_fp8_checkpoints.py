"""fp8 checkpoints as TensorRT-LLM and ModelOpt write them: their bits reach the engine.

The checkpoint is made here, by the published formulas and torch's own e4m3, from a plain one.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.compare import assert_same_bits
from tests.conftest import MakeTinyLlama
from tests.tiny_llama import TinyLlama
from tidemill.api.build import BuildRequest, build
from tidemill.api.convert import ConvertRequest, convert
from tidemill.api.verify import verify_engine
from tidemill.base.dtypes import DType
from tidemill.base.errors import CheckpointError, ConfigError
from tidemill.checkpoint.checkpoint import Checkpoint
from tidemill.ir.storage import widen

MATRIX = "transformer.layers.1.attention.dense"
KINDS = ("qkv", "dense", "fc", "gate", "proj")
Tensors = dict[str, torch.Tensor]


def one_scale(weight: torch.Tensor) -> tuple[str, torch.Tensor]:
    # Scales are equal on all ranks: one that the whole model's weights fit.
    return "weights_scaling_factor", torch.tensor([2.0 / 448])


def scale_by_output(weight: torch.Tensor) -> tuple[str, torch.Tensor]:
    # Equal on all ranks too, where they share the outputs.
    return "per_channel_scale", (2.0 + torch.arange(len(weight)) % 3) / 448


def as_fp8(tensors: Tensors, scale_of: Callable[[torch.Tensor], tuple[str, torch.Tensor]]) -> None:
    for name in [n for n in tensors if n.rsplit(".")[-2] in KINDS and n.endswith("weight")]:
        weight, stem = tensors[name].float(), name.removesuffix("weight")
        suffix, scale = scale_of(weight)
        tensors[name] = (weight / scale.reshape(-1, 1)).to(torch.float8_e4m3fn)
        tensors[stem + suffix] = scale
        tensors[stem + "activation_scaling_factor"] = torch.tensor([0.01])


@pytest.fixture
def make_fp8(
    make_tiny_llama: MakeTinyLlama, tmp_path: Path
) -> Callable[[str, int], tuple[Path, Path]]:
    """Return a maker of (plain, fp8) checkpoints by algorithm and number of ranks."""

    def make(algorithm: str, tp_size: int) -> tuple[Path, Path]:
        scale_of = one_scale if algorithm == "FP8" else scale_by_output
        model = make_tiny_llama(TinyLlama(is_tied=False))
        for name in ("plain", "fp8"):
            convert(ConvertRequest(model, tmp_path / name, dtype="bfloat16", tp_size=tp_size))
        for rank in range(tp_size):
            path = tmp_path / "fp8" / f"rank{rank}.safetensors"
            tensors = load_file(path)
            as_fp8(tensors, scale_of)
            save_file(tensors, path)
        path = tmp_path / "fp8" / "config.json"
        config = json.loads(path.read_text())
        path.write_text(json.dumps({**config, "quantization": {"quant_algo": algorithm}}))
        return tmp_path / "plain", tmp_path / "fp8"

    return make


@pytest.mark.parametrize("tp_size", [1, 2])
@pytest.mark.parametrize("algorithm", ["FP8", "FP8_PER_CHANNEL_PER_TOKEN"])
def test_engine_runs_the_checkpoints_bits_and_agrees_with_it(
    algorithm: str, tp_size: int, make_fp8: Callable[[str, int], tuple[Path, Path]], tmp_path: Path
) -> None:
    plain, fp8 = make_fp8(algorithm, tp_size)
    checkpoint, original = Checkpoint.open(fp8), Checkpoint.open(plain)
    for name in (f"{MATRIX}.weight", "transformer.layers.0.attention.qkv.weight"):
        assert checkpoint.dtype(name) is DType.F8
        got = widen(checkpoint.read(name), DType.F8)
        exact = widen(original.read(name), DType.BF16)
        assert (abs(got - exact) <= abs(exact) / 16 + 1e-4).all()
    report = build(BuildRequest(fp8, tmp_path / "engine", max_seq_len=64))
    assert (report.build_config["quant"], report.build_config["quant_head"]) == ("fp8", "none")
    assert verify_engine(tmp_path / "engine", fp8).is_same_token


def test_scale_is_missing(make_fp8: Callable[[str, int], tuple[Path, Path]]) -> None:
    _, fp8 = make_fp8("FP8", 1)
    path = fp8 / "rank0.safetensors"
    tensors = load_file(path)
    del tensors[f"{MATRIX}.weights_scaling_factor"]
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=f"{MATRIX}.weights_scaling_factor is missing"):
        Checkpoint.open(fp8)


def test_scales_of_another_float_type_keep_their_values(
    make_fp8: Callable[[str, int], tuple[Path, Path]],
) -> None:
    _, fp8 = make_fp8("FP8_PER_CHANNEL_PER_TOKEN", 1)
    before = widen(Checkpoint.open(fp8).read(f"{MATRIX}.weight"), DType.F8)
    _edit(fp8, f"{MATRIX}.per_channel_scale", lambda scales: scales.bfloat16())
    after = widen(Checkpoint.open(fp8).read(f"{MATRIX}.weight"), DType.F8)
    assert (abs(after - before) <= abs(before) / 256).all()


@pytest.mark.parametrize(
    ("name", "dtype", "fault"),
    [
        ("weight", torch.bfloat16, "has type BF16, expected F8_E4M3 or I8"),
        ("weights_scaling_factor", torch.int32, "has type I32, expected F32 or F16 or BF16"),
    ],
)
def test_tensor_of_another_type(
    make_fp8: Callable[[str, int], tuple[Path, Path]], name: str, dtype: torch.dtype, fault: str
) -> None:
    _, fp8 = make_fp8("FP8", 1)
    _edit(fp8, f"{MATRIX}.{name}", lambda tensor: tensor.to(dtype))
    with pytest.raises(CheckpointError, match=f"{MATRIX}.{name} {fault}"):
        Checkpoint.open(fp8)


def test_matrix_stored_as_a_view_of_its_bits_is_the_same(
    make_fp8: Callable[[str, int], tuple[Path, Path]],
) -> None:
    _, fp8 = make_fp8("FP8", 1)
    before = Checkpoint.open(fp8).read(f"{MATRIX}.weight")
    _edit(fp8, f"{MATRIX}.weight", lambda codes: codes.view(torch.int8))
    assert_same_bits(Checkpoint.open(fp8).read(f"{MATRIX}.weight"), before)


@pytest.mark.parametrize(
    ("name", "stored", "place", "got"),
    [
        ("weight", torch.float8_e4m3fn, "[3, 5]", "1 of 2304"),
        ("weight", torch.int8, "[3, 5]", "1 of 2304"),
        ("weights_scaling_factor", torch.float32, "[0]", "1 of 1"),
    ],
)
def test_values_that_are_not_numbers_are_not_built(
    make_fp8: Callable[[str, int], tuple[Path, Path]],
    tmp_path: Path,
    name: str,
    stored: torch.dtype,
    place: str,
    got: str,
) -> None:
    def spoil(tensor: torch.Tensor) -> torch.Tensor:
        if stored is torch.float32:
            return tensor * float("nan")
        tensor.view(torch.uint8)[3, 5] = 0xFF  # one of the two codes of NaN
        return tensor.view(stored)

    _, fp8 = make_fp8("FP8", 1)
    _edit(fp8, f"{MATRIX}.{name}", spoil)
    with pytest.raises(CheckpointError, match="values that are not numbers") as caught:
        build(BuildRequest(fp8, tmp_path / "engine", max_seq_len=64))
    assert caught.value.where == f"{fp8}, {MATRIX}.{name}{place}"
    assert caught.value.got == f"{got} are NaN or infinite"
    assert not (tmp_path / "engine").exists()


def _edit(
    checkpoint: Path, name: str, edit: Callable[[torch.Tensor], torch.Tensor], rank: int = 0
) -> None:
    path = checkpoint / f"rank{rank}.safetensors"
    tensors = load_file(path)
    tensors[name] = edit(tensors[name])
    save_file(tensors, path)


def test_ranks_with_scales_of_their_own(
    make_fp8: Callable[[str, int], tuple[Path, Path]],
) -> None:
    _, fp8 = make_fp8("FP8", 2)
    _edit(fp8, f"{MATRIX}.weights_scaling_factor", lambda scale: 2 * scale, rank=1)
    with pytest.raises(CheckpointError, match="scales differ between ranks"):
        Checkpoint.open(fp8).read(f"{MATRIX}.weight")


@pytest.mark.parametrize("quant", ["none", "w8a8"])
def test_fp8_layers_have_no_other_scheme(
    quant: str, make_fp8: Callable[[str, int], tuple[Path, Path]], tmp_path: Path
) -> None:
    _, fp8 = make_fp8("FP8", 1)
    with pytest.raises(ConfigError, match="fp8 already"):
        build(BuildRequest(fp8, tmp_path / "engine", quant=quant))
    assert not (tmp_path / "engine").exists()
