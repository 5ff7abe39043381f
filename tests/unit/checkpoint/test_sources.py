"""Lazy sources against the safetensors and gguf packages that wrote the files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tidemill.base.dtypes import DType
from tidemill.checkpoint.source import GgufSource, SafetensorsSource

SEED = 5


def _rng() -> Any:
    print(f"seed {SEED}")
    return np.random.default_rng(SEED)


def test_safetensors_reads_every_type_as_it_was_saved(tmp_path: Path) -> None:
    torch.manual_seed(SEED)
    tensors = {
        "f32": torch.randn(3, 5, 7),
        "f16": torch.randn(11).half(),
        "bf16": torch.randn(4, 3).bfloat16(),
        "i64": torch.arange(6),
        "empty": torch.zeros(0, 4),
        "scalar": torch.tensor(2.5),
    }
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    source = SafetensorsSource.open_directory(tmp_path)
    assert sorted(source.names()) == sorted(tensors)
    for name, tensor in tensors.items():
        assert source.shape(name) == tuple(tensor.shape)
        got = source.read(name)
        want = tensor.view(torch.int16).numpy().view(np.uint16) if name == "bf16" else tensor
        np.testing.assert_array_equal(got, np.asarray(want))
    assert source.dtype("bf16") is DType.BF16
    np.testing.assert_array_equal(source.read_rows("f32", 1, 3), tensors["f32"][1:3].numpy())


def test_sharded_index_reads_as_one_source(tmp_path: Path) -> None:
    names = {"a": "one.safetensors", "b": "two.safetensors"}
    for name, file in names.items():
        save_file({name: torch.full((2,), float(ord(name)))}, tmp_path / file)
    index = {"weight_map": names}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    source = SafetensorsSource.open_directory(tmp_path)
    assert {name: source.read(name)[0] for name in source.names()} == {"a": 97.0, "b": 98.0}


def test_source_still_reads_after_its_file_was_replaced(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(3)}, path)
    source = SafetensorsSource([path])
    path.unlink()
    save_file({"a": torch.zeros(3)}, path)
    np.testing.assert_array_equal(source.read("a"), np.ones(3))


def _write_gguf(path: Path, tensors: dict[str, tuple[Any, Any]]) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_array("tokenizer.ggml.tokens", ["a", "\u00e9", ""])
    writer.add_array("tokenizer.ggml.scores", [0.5, -1.0])
    writer.add_uint32("llama.block_count", 3)
    writer.add_bool("flag", True)
    writer.add_float32("llama.rope.freq_base", 1e4)
    for name, (values, encoding) in tensors.items():
        writer.add_tensor(name, values, raw_dtype=encoding)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_gguf_metadata_and_plain_tensors_are_read_as_written(tmp_path: Path) -> None:
    values = _rng().standard_normal((5, 7)).astype(np.float32)
    path = tmp_path / "m.gguf"
    _write_gguf(path, {"w": (values, None), "h": (values.astype(np.float16), None)})
    source = GgufSource(path)
    metadata = source.file.metadata
    assert metadata["tokenizer.ggml.tokens"] == ["a", "\u00e9", ""]
    assert metadata["tokenizer.ggml.scores"] == [0.5, -1.0]
    assert metadata["llama.block_count"] == 3 and metadata["flag"] is True
    np.testing.assert_array_equal(source.read("w"), values)
    np.testing.assert_array_equal(source.read_rows("h", 2, 5), values.astype(np.float16)[2:])
    assert source.dtype("h") is DType.F16


@pytest.mark.parametrize("name", ["BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_gguf_dequantises_what_the_package_quantised(tmp_path: Path, name: str) -> None:
    encoding = gguf.GGMLQuantizationType[name]
    values = _rng().standard_normal((6, 96)).astype(np.float32)
    packed = gguf.quants.quantize(values, encoding)
    _write_gguf(tmp_path / "m.gguf", {"w": (packed, encoding)})
    source = GgufSource(tmp_path / "m.gguf")
    got = source.read("w")
    if name == "BF16":
        got = (got.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(got, gguf.quants.dequantize(packed, encoding))
    np.testing.assert_array_equal(source.read_rows("w", 1, 4), source.read("w")[1:4])
    assert source.dominant_dtype() is DType.BF16


@pytest.mark.parametrize("name", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"])
def test_gguf_k_quants_of_any_bits_are_dequantised_row_by_row(tmp_path: Path, name: str) -> None:
    encoding = gguf.GGMLQuantizationType[name]
    row_bytes = 2 * gguf.GGML_QUANT_SIZES[encoding][1]
    # Bytes below 0x3c keep every half-precision scale finite wherever it lies in the block.
    packed = _rng().integers(0, 0x3C, (3, row_bytes), dtype=np.uint8)
    _write_gguf(tmp_path / "m.gguf", {"w": (packed, encoding)})
    source = GgufSource(tmp_path / "m.gguf")
    assert source.shape("w") == (3, 512)
    want = gguf.quants.dequantize(packed, encoding)
    assert np.isfinite(want).all() and want.any()
    np.testing.assert_array_equal(source.read("w"), want)
    np.testing.assert_array_equal(source.read_rows("w", 2, 3), want[2:])
