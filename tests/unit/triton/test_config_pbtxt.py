"""The writer's text, judged by protobuf's own parser."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from tidemill.frontends.triton.config_pbtxt import (
    DataType,
    ModelConfig,
    TensorConfig,
    quote,
    write_config,
)
from tidemill.frontends.triton.deploy import DeployRequest, deploy

SMALL = ModelConfig(
    name="m",
    max_batch_size=0,
    inputs=(TensorConfig("x", DataType.INT32, (-1,)), TensorConfig("t", DataType.FP32, (1,), True)),
    outputs=(TensorConfig("y", DataType.STRING, (-1, 2)),),
    is_decoupled=True,
)


def parse(text: str) -> Any:
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def test_written_config_reads_back_as_it_was_meant() -> None:
    config = parse(write_config(SMALL))
    assert (config.name, config.backend, config.max_batch_size) == ("m", "python", 0)
    assert config.model_transaction_policy.decoupled
    assert [(tensor.name, list(tensor.dims), tensor.optional) for tensor in config.input] == [
        ("x", [-1], False),
        ("t", [1], True),
    ]
    assert config.output[0].data_type == model_config_pb2.TYPE_STRING
    assert [group.count for group in config.instance_group] == [1]
    assert not config.HasField("dynamic_batching")


@pytest.mark.parametrize(
    "text", ["", 'a"b\\c', "line\nbreak\ttab", "caf\u00e9 \U0001f40c", "\x00\x7f"]
)
def test_any_text_survives_quoting(text: str) -> None:
    written = write_config(replace(SMALL, parameters={"key": text}))
    assert written.isascii()
    assert parse(written).parameters["key"].string_value == text


def test_quote_escapes_by_three_octal_digits_so_that_a_following_digit_is_safe() -> None:
    assert quote("\n1") == '"\\0121"'


@pytest.mark.parametrize("style", ["text", "tokens"])
def test_every_declared_tensor_of_a_style_is_valid_and_named_once(
    tmp_path: Path, style: str
) -> None:
    engine = tmp_path / "engine"
    engine.mkdir()
    for name in ("rank0.engine", "tokenizer.json"):
        (engine / name).write_text("x")
    (engine / "config.json").write_text(json.dumps({"build_config": {"max_batch_size": 7}}))
    report = deploy(DeployRequest(engine, tmp_path / "repo", "m", style))
    config = parse((report.model_dir / "config.pbtxt").read_text())
    for tensors in (config.input, config.output):
        names = [tensor.name for tensor in tensors]
        assert len(names) == len(set(names))
    assert config.max_batch_size == (7 if style == "text" else 0)
