"""Users' own model directories: what is changed, what is kept, what is left alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from tidemill.base.errors import ConfigError
from tidemill.frontends.triton.deploy_from import DeployFromRequest, deploy_from
from tidemill.frontends.triton.model_parameters import ModelPlace, resolve_path
from tidemill.frontends.triton.model_yaml import apply_model_yaml
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
    (version.parent / "labels.txt").write_text("a label")
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


def test_relative_paths_count_from_the_repository_that_the_user_wrote(
    repository: Path, tmp_path: Path
) -> None:
    (tmp_path / "server").mkdir()
    staged = stage_repository(repository, tmp_path / "server" / "models", print)
    for models in (repository, staged):
        engine_dir = resolve_path(ModelPlace(models / "llama2_7b", "1"), "../engine")
        assert engine_dir.resolve() == tmp_path / "engine"


def test_users_own_model_py_stays(repository: Path, tmp_path: Path) -> None:
    (repository / "llama2_7b" / "1" / "model.py").write_text("# mine")
    staged = stage_repository(repository, tmp_path / "staged", print)
    assert (staged / "llama2_7b" / "1" / "model.py").read_text() == "# mine"


def test_models_beside_it_come_along_but_no_hidden_directory(
    repository: Path, tmp_path: Path
) -> None:
    (repository / "other").mkdir()
    (repository / ".other.partial-1").mkdir()
    staged = stage_repository(repository, tmp_path / "staged", print)
    assert (staged / "other").resolve() == (repository / "other").resolve()
    assert not (staged / ".other.partial-1").exists()


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


MODEL_YAML = """
# the model
model: ../engine   # beside
backend: "pytorch"
tensor_parallel_size: 1
kv_cache_config:
  enable_block_reuse: true
triton_config:
  max_batch_size: 0
  decoupled: True
"""
LLMAPI_CONFIG = """
name: "llm" backend: "python"
input [ { name: "text_input" data_type: TYPE_STRING dims: [ -1 ] },
        { name: "sampling_param_max_tokens" data_type: TYPE_INT32 dims: [ 1 ] optional: true } ]
output { name: "text_output" data_type: TYPE_STRING dims: [ -1 ] }
"""


def read(path: Path) -> Any:
    return text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())


def test_llmapi_model_is_served_by_what_its_model_yaml_says(tmp_path: Path) -> None:
    model = tmp_path / "models" / "llm"
    (model / "1").mkdir(parents=True)
    (model / "engine").mkdir()
    (model / "config.pbtxt").write_text(LLMAPI_CONFIG)
    (model / "1" / "model.py").write_text("from tensorrt_llm import LLM")
    (model / "1" / "model.yaml").write_text(MODEL_YAML)
    said: list[str] = []
    staged = stage_repository(tmp_path / "models", tmp_path / "staged", said.append) / "llm"
    config = read(staged / "config.pbtxt")
    assert config.model_transaction_policy.decoupled
    path = config.parameters["gpt_model_path"].string_value
    assert Path(path) == (model / "engine").resolve()
    assert "LlmapiModel" in (staged / "1" / "model.py").read_text()
    assert any("backend, kv_cache_config, tensor_parallel_size" in line for line in said)


@pytest.mark.parametrize("text", ["model", "triton_config:\n  decoupled: perhaps\n"])
def test_model_yaml_that_cannot_be_read_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "model.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"model\.yaml"):
        apply_model_yaml(model_config_pb2.ModelConfig(), tmp_path)


@pytest.mark.parametrize("link", ["copy", "symbolic", "hard"])
def test_deploy_from_writes_what_needs_no_change(
    repository: Path, tmp_path: Path, link: str
) -> None:
    said: list[str] = []
    source, target = repository / "llama2_7b", tmp_path / "deployed"
    deployed = deploy_from(DeployFromRequest(source, target, link), said.append)
    assert deployed == target / "llama2_7b"
    assert (deployed / "1" / "rank0.engine").read_text() == "engine"
    assert (deployed / "1" / "rank0.engine").is_symlink() == (link == "symbolic")
    assert "TokensModel" in (deployed / "1" / "model.py").read_text()
    assert (deployed / "labels.txt").read_text() == "a label"
    assert stage_repository(target, tmp_path / "staged", print) == target
    assert any("2 x KIND_GPU -> 1 x KIND_CPU" in line for line in said)
    with pytest.raises(ConfigError, match="already has a model"):
        deploy_from(DeployFromRequest(source, target, link), print)
    deploy_from(DeployFromRequest(source, target, link, replace=True), print)


def test_deploy_from_names_the_backend_that_every_server_has(
    repository: Path, tmp_path: Path
) -> None:
    config = repository / "llama2_7b" / "config.pbtxt"
    text = CONFIG.replace('platform: "tensorrt_llm"', 'backend: "tensorrtllm"')
    config.write_text(text.replace("{ count: 2 kind: KIND_GPU gpus: [ 0, 1 ] }", ""))
    said: list[str] = []
    deployed = deploy_from(DeployFromRequest(config.parent, tmp_path / "deployed"), said.append)
    assert read(deployed / "config.pbtxt").backend == "python"
    assert "TokensModel" in (deployed / "1" / "model.py").read_text()
    assert any('backend "tensorrtllm" -> "python"' in line for line in said)


def test_deploy_from_a_directory_without_a_model_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no model to deploy"):
        deploy_from(DeployFromRequest(tmp_path, tmp_path / "deployed"), print)
    assert not (tmp_path / "deployed").exists()
