"""One real tritonserver for all tests here: spelled answers, and the sample model.

The server is the wheel's, started as users start it; it serves both styles, decoupled and not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import Sample
from tests.triton.spelled_repository import deploy_spelled, write_spelled_engine
from tests.triton.upstream_repository import FIRST, LATEST, write_upstreams_repository
from tests.triton.users_repository import write_users_repository
from tidemill.frontends.triton.deploy import DeployRequest, deploy
from tidemill.frontends.triton.serve_request import ServeRequest
from tidemill.frontends.triton.server import TritonServer

REPOSITORY_ROOT = Path(__file__).parents[2]

ADMIN_KEY = "sesame"
USERS_CONFIG = """
name: "llama2_7b"   platform: "tensorrt_llm"   max_batch_size: 0
input  [ { name: "input_ids" data_type: TYPE_INT32 dims: [ -1 ] }, { name: "input_lengths" data_type: TYPE_INT32 dims: [ -1 ] } ]
output [ { name: "output_ids" data_type: TYPE_INT32 dims: [ -1 ] } ]
instance_group [ { count: 2 kind: KIND_GPU gpus: [ 0, 1 ] } ]
parameters: { key: "tensor_parallel_size" value: { string_value: "2" } }
"""  # noqa: E501


@dataclass(frozen=True)
class Served:
    """A running server and the engines behind its models."""

    server: TritonServer
    spelled_engine: Path
    sample_engine: Path


@pytest.fixture(scope="session")
def sample_engine(sample: Sample) -> Path:
    """Return an engine of the sample model for this machine."""
    return sample.engine


def write_users_own_model(repository: Path, engine: Path) -> None:
    """Lay out a model as a user of TensorRT-LLM has it, without a model.py."""
    version = repository / "llama2_7b" / "1"
    version.mkdir(parents=True)
    (version.parent / "config.pbtxt").write_text(USERS_CONFIG)
    for path in engine.iterdir():
        (version / path.name).symlink_to(path)


@pytest.fixture(scope="session")
def served(sample_engine: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Serve every deployment that the tests use."""
    directory = tmp_path_factory.mktemp("triton")
    repository = directory / "models"
    spelled = write_spelled_engine(directory / "engine")
    deploy_spelled(spelled, repository)
    deploy(DeployRequest(sample_engine, repository, "sample", link="symbolic"))
    deploy(DeployRequest(sample_engine, repository, "sample_tokens", "tokens", link="symbolic"))
    deploy(DeployRequest(sample_engine, repository, "", "inflight_batcher_llm", link="symbolic"))
    write_users_own_model(repository, sample_engine)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(REPOSITORY_ROOT))
        with TritonServer(ServeRequest(repository, 0, 0, 0, admin_key=ADMIN_KEY)) as server:
            yield Served(server, spelled, sample_engine)


@dataclass(frozen=True)
class Existing:
    """A running server of repositories that others wrote, its engine, and what it said."""

    server: TritonServer
    engine: Path
    said: list[str]


@pytest.fixture(scope="package")
def existing(sample_engine: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Existing]:
    """Serve upstream's repositories and a user's own, side by side."""
    repository = tmp_path_factory.mktemp("existing") / "models"
    for generation in (LATEST, FIRST):
        write_upstreams_repository(repository, sample_engine, generation)
    write_users_repository(repository, sample_engine)
    flags = ("--model-control-mode=explicit", "--load-model=*")
    request = ServeRequest(repository, 0, 0, 0, server_flags=flags, admin_key=ADMIN_KEY)
    said: list[str] = []
    with TritonServer(request, said.append) as server:
        yield Existing(server, sample_engine, said)
