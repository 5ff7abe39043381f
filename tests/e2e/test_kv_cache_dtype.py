"""Engines whose keys and values are cached in 8 bits: asked for at convert or at build.

The judge of the numbers is `verify`, which follows the checkpoint's own maths with keys and values
rounded as the cache holds them. Losses and bits have their own tests (test_scheme_accuracy,
test_batch_invariance).
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tidemill.api.build import BuildRequest, build
from tidemill.api.convert import ConvertRequest, convert
from tidemill.api.llm import LLM
from tidemill.api.verify import verify_engine
from tidemill.base.dtypes import DType
from tidemill.engine.reader import EngineFile


@pytest.mark.parametrize(
    ("dtype", "cache", "stored"), [("bfloat16", "int8", DType.Q8), ("float32", "fp8", DType.F8)]
)
def test_engine_with_an_8_bit_cache_agrees_with_its_checkpoint_and_stores_a_byte_an_element(
    tiny_llama: Path, tmp_path: Path, dtype: str, cache: str, stored: DType
) -> None:
    convert(ConvertRequest(tiny_llama, tmp_path / "checkpoint", dtype=dtype))
    engine = tmp_path / "engine"
    report = build(
        BuildRequest(tmp_path / "checkpoint", engine, max_seq_len=64, kv_cache_dtype=cache)
    )
    assert report.build_config["kv_cache_dtype"] == cache
    assert len(verify_engine(engine, tmp_path / "checkpoint").errors) > 10
    kv = EngineFile.open(engine).manifest.kv
    assert kv.dtype is stored
    assert kv.bytes_per_token == 2 * kv.num_layers * kv.num_kv_heads * (kv.head_size + 4)


def test_checkpoint_that_asks_for_an_8_bit_cache_gets_one_unless_build_says_otherwise(
    tiny_llama: Path, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "checkpoint"
    convert(ConvertRequest(tiny_llama, checkpoint, int8_kv_cache=True))
    config = json.loads((checkpoint / "config.json").read_text("utf-8"))
    assert config["quantization"]["kv_cache_quant_algo"] == "INT8"
    report = build(BuildRequest(checkpoint, tmp_path / "engine", max_seq_len=64))
    assert report.build_config["kv_cache_dtype"] == "int8"
    plain = BuildRequest(checkpoint, tmp_path / "plain", max_seq_len=64, kv_cache_dtype="none")
    assert build(plain).build_config["kv_cache_dtype"] == "none"
    with LLM(tmp_path / "engine", kv_cache_tokens=128) as llm:
        assert len(llm.generate([[5, 6, 7]])[0].outputs[0].token_ids) > 0


def test_checkpoint_that_names_no_algorithm_for_its_cache_keeps_the_models_type(
    tiny_llama: Path, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "checkpoint"
    convert(ConvertRequest(tiny_llama, checkpoint))
    path = checkpoint / "config.json"
    unquantised = {"quant_algo": "NO_QUANT", "kv_cache_quant_algo": "NO_QUANT"}
    config = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**config, "quantization": unquantised}))
    report = build(BuildRequest(checkpoint, tmp_path / "engine", max_seq_len=64))
    assert report.build_config["kv_cache_dtype"] == "none"
