"""Users' own model directories: what is changed, what is kept, what is left alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from tidemill.frontends.triton.staged_repository import is_foreign, stage_repository

CONFIG = """
# as a user wrote it
name: "llama2_7b"   platform: "tensorrt_llm"   max_batch_size: 0
input  [ { name: "input_ids" data_type: TYPE_INT32 dims: [ -1 ] },
         { name: "input_lengths" data_type: TYPE_INT32 dims: [ -1 ] } ]
output [ { name: "output_ids" data_type: TYPE_INT32 dims: [ -1 ] } ]
instance_group [ { count: 2 kind: KIND_GPU gpus: [ 0, 1 ] } ]
dynamic_batching { }
version_policy: { all { } }
parameters: { key: "tensor_parallel_size" value: { string_value: "2" } }
"""

PARAMETER = 'parameters {{ key: "batch_scheduler_policy" value {{ string_value: "{}" }} }}'


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    version = tmp_path / "models" / "llama2_7b" / "1"
    version.mkdir(parents=True)
    (version.parent / "config.pbtxt").write_text(CONFIG)
    (version / "rank0.engine").write_text("engine")
    return tmp_path / "models"


def test_repository_that_loads_as_it_is_is_not_copied(tmp_path: Path) -> None:
    model = tmp_path / "models" / "m"
    model.mkdir(parents=True)
    (model / "config.pbtxt").write_text('name: "m" backend: "python"')
    staged = stage_repository(tmp_path / "models", tmp_path / "staged", print)
    assert staged == tmp_path / "models"
    assert not (tmp_path / "staged").exists()


def test_settings_override_those_of_every_config_and_leave_the_files_alone(
    repository: Path, tmp_path: Path
) -> None:
    own = tmp_path / "models" / "own"
    (own / "1").mkdir(parents=True)
    text = 'name: "own" backend: "tidemill"\n' + PARAMETER.format("static_batch")
    (own / "config.pbtxt").write_text(text)
    (own / "1" / "rank0.engine").write_text("engine")
    settings = {"batch_scheduler_policy": "max_utilization", "max_queue_size": "3"}
    staged = stage_repository(repository, tmp_path / "staged", print, settings)
    for name in ("own", "llama2_7b"):
        served = (staged / name / "config.pbtxt").read_text()
        parameters = text_format.Parse(served, model_config_pb2.ModelConfig()).parameters
        assert parameters["batch_scheduler_policy"].string_value == "max_utilization"
        assert parameters["max_queue_size"].string_value == "3"
        assert (staged / name / "1" / "rank0.engine").read_text() == "engine"
    assert (own / "config.pbtxt").read_text() == text


def test_every_change_is_said_and_the_rest_of_the_config_is_kept(
    repository: Path, tmp_path: Path
) -> None:
    said: list[str] = []
    staged = stage_repository(repository, tmp_path / "staged", said.append)
    text = (staged / "llama2_7b" / "config.pbtxt").read_text()
    config = text_format.Parse(text, model_config_pb2.ModelConfig())
    assert (config.name, config.platform, config.backend) == ("llama2_7b", "", "python")
    kinds = model_config_pb2.ModelInstanceGroup
    assert [(group.count, group.kind) for group in config.instance_group] == [(1, kinds.KIND_CPU)]
    assert config.version_policy.HasField("all")
    assert config.parameters["tensor_parallel_size"].string_value == "2"
    assert [line.split()[1] for line in said] == [
        "platform",
        "instance_group",
        "dynamic_batching",
        "optional",
    ]
    assert "2 x KIND_GPU -> 1 x KIND_CPU" in said[1]
    assert "request_output_len" in said[3] and "output_lengths" in said[3]


def test_users_files_are_linked_and_never_written(repository: Path, tmp_path: Path) -> None:
    before = sorted(repository.rglob("*"))
    staged = stage_repository(repository, tmp_path / "staged", print)
    version = staged / "llama2_7b" / "1"
    assert (version / "rank0.engine").resolve() == (
        repository / "llama2_7b" / "1" / "rank0.engine"
    ).resolve()
    assert "TokensModel" in (version / "model.py").read_text()
    assert sorted(repository.rglob("*")) == before


def test_users_own_model_py_stays(repository: Path, tmp_path: Path) -> None:
    (repository / "llama2_7b" / "1" / "model.py").write_text("# mine")
    staged = stage_repository(repository, tmp_path / "staged", print)
    assert (staged / "llama2_7b" / "1" / "model.py").read_text() == "# mine"


def test_models_beside_it_come_along(repository: Path, tmp_path: Path) -> None:
    (repository / "other").mkdir()
    staged = stage_repository(repository, tmp_path / "staged", print)
    assert (staged / "other").resolve() == (repository / "other").resolve()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('platform: "tensorrt_llm"', True),
        ("name: 'x' platform : 'tensorrt_llm'", True),
        ('# platform: "tensorrt_llm"', False),
        ('platform: "ensemble"', False),
        ('backend: "tensorrt_llm"', False),
    ],
)
def test_only_the_platform_of_tensorrt_llm_is_foreign(
    tmp_path: Path, line: str, expected: bool
) -> None:
    (tmp_path / "config.pbtxt").write_text(f"max_batch_size: 0\n{line}\n")
    assert is_foreign(tmp_path) is expected
