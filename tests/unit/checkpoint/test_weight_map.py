"""Row orders, rotary scaling and the custom view, against independent formulas."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.sentencepiece_file import UNIGRAM, write_sentencepiece
from tidemill.base.errors import UnsupportedError
from tidemill.checkpoint.custom_source import CustomSource
from tidemill.checkpoint.rope_scaling import rope_from_gguf, rope_from_hf
from tidemill.checkpoint.sentencepiece_model import metadata_from_sentencepiece
from tidemill.checkpoint.source import SafetensorsSource
from tidemill.checkpoint.weight_map import unpair_rotary_rows


def _permute_as_llama_cpp(weights: Any, num_heads: int) -> Any:
    """The permutation of llama.cpp's convert_hf_to_gguf.py."""
    shape = weights.shape
    halves = weights.reshape(num_heads, 2, shape[0] // num_heads // 2, *shape[1:])
    return halves.swapaxes(1, 2).reshape(shape)


@pytest.mark.parametrize("shape", [(24, 5), (24,)])
@pytest.mark.parametrize("num_heads", [1, 3, 6])
def test_unpairing_undoes_the_permutation_of_llama_cpp(
    shape: tuple[int, ...], num_heads: int
) -> None:
    rows = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    paired = _permute_as_llama_cpp(rows, num_heads)
    np.testing.assert_array_equal(unpair_rotary_rows(paired, num_heads), rows)


def _factors_as_llama_cpp(base: float, factor: float, head_size: int) -> Any:
    """rope_freqs.weight as convert_hf_to_gguf.py computes it for llama3 scaling."""
    frequencies = 1.0 / (base ** (np.arange(0, head_size, 2, dtype=np.float32) / head_size))
    low_wavelength, high_wavelength = 8192 / 1.0, 8192 / 4.0
    factors = []
    for frequency in frequencies:
        wavelength = 2 * np.pi / frequency
        if wavelength < high_wavelength:
            factors.append(1.0)
        elif wavelength > low_wavelength:
            factors.append(factor)
        else:
            smooth = (8192 / wavelength - 1.0) / (4.0 - 1.0)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, dtype=np.float32)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_gguf_rope_factors_are_recognised_as_llama3_scaling(factor: float) -> None:
    factors = _factors_as_llama_cpp(500000.0, factor, 128)
    metadata = {"llama.rope.freq_base": 500000.0}
    base, scaling = rope_from_gguf(metadata, "llama", factors, "m.gguf")
    assert base == 500000.0
    assert scaling == {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


def test_gguf_rope_factors_of_unknown_origin_are_refused() -> None:
    factors = np.linspace(1, 3, 64, dtype=np.float32)
    with pytest.raises(UnsupportedError, match="unknown origin"):
        rope_from_gguf({"llama.rope.freq_base": 1e4}, "llama", factors, "m.gguf")


def test_old_and_new_spelling_of_hf_rope_give_the_same() -> None:
    llama3 = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    old = rope_from_hf({"rope_theta": 5e5, "rope_scaling": llama3}, "config.json")
    new = rope_from_hf({"rope_parameters": {**llama3, "rope_theta": 5e5}}, "config.json")
    assert old == new == (5e5, llama3)
    assert rope_from_hf({}, "config.json") == (1e4, None)
    assert rope_from_hf({"rope_scaling": None, "rope_theta": 7.0}, "config.json") == (7.0, None)


def test_custom_map_renames_transposes_and_leaves_out(tmp_path: Path) -> None:
    wide = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    tensors = {"b.7.wq": wide, "emb": wide.clone(), "steps": torch.zeros(1)}
    save_file(tensors, tmp_path / "model.safetensors")
    entry = {"to": "layers.{i}.q.weight", "transpose": True}
    names = {"b.{i}.wq": entry, "emb": "embed.weight", "steps": None}
    (tmp_path / "map.json").write_text(json.dumps({"tensors": names}))
    source = CustomSource(SafetensorsSource.open_directory(tmp_path), tmp_path / "map.json")
    assert sorted(source.names()) == ["embed.weight", "layers.7.q.weight"]
    assert source.shape("layers.7.q.weight") == (3, 2)
    np.testing.assert_array_equal(source.read("layers.7.q.weight"), wide.T.numpy())
    np.testing.assert_array_equal(source.read_rows("layers.7.q.weight", 1, 3), wide.T.numpy()[1:])


def test_sentencepiece_vocabulary_is_read_from_its_protobuf(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    write_sentencepiece(path, ["<unk>", "<s>", "\u2581a", "<0x0A>"])
    metadata = metadata_from_sentencepiece(path)
    assert metadata["tokenizer.ggml.tokens"] == ["<unk>", "<s>", "\u2581a", "<0x0A>"]
    assert metadata["tokenizer.ggml.scores"] == [0.0, -1.0, -2.0, -3.0]
    assert metadata["tokenizer.ggml.token_type"] == [2, 3, 1, 6]
    assert metadata["tokenizer.ggml.eos_token_id"] == 2


def test_sentencepiece_unigram_model_is_refused_with_a_way_out(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    write_sentencepiece(path, ["<unk>", "a"], UNIGRAM)
    with pytest.raises(UnsupportedError, match="AutoTokenizer"):
        metadata_from_sentencepiece(path)
