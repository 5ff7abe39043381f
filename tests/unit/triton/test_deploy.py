"""Deploy: the files of a model directory, written whole or not at all."""

from __future__ import annotations

import json
import os
import resource
from dataclasses import replace
from pathlib import Path

import pytest

from tidemill.base.errors import BuildError, ConfigError
from tidemill.frontends.triton.deploy import DeployRequest, deploy
from tidemill.frontends.triton.deploy_request import CLASSIC

ENGINE_FILES = ("config.json", "rank0.engine", "tokenizer.json")


@pytest.fixture
def request_for(tmp_path: Path) -> DeployRequest:
    engine = tmp_path / "engine"
    engine.mkdir()
    for name in ENGINE_FILES:
        (engine / name).write_text(json.dumps({"build_config": {"max_batch_size": 3}}))
    return DeployRequest(engine, tmp_path / "repository", "llama")


def test_text_style_lays_out_the_model_and_the_engine_beside_it(request_for: DeployRequest) -> None:
    report = deploy(request_for)
    assert report.model_dir == request_for.model_repository / "llama"
    assert sorted(path.name for path in (report.model_dir / "1").iterdir()) == sorted(
        [*ENGINE_FILES, "__init__.py", "model.py"]
    )
    assert report.is_decoupled
    assert "text_model import TextModel" in (report.model_dir / "1" / "model.py").read_text()


def test_tokens_style_answers_once_and_packs(request_for: DeployRequest) -> None:
    report = deploy(replace(request_for, style="tokens"))
    config = (report.model_dir / "config.pbtxt").read_text()
    assert not report.is_decoupled
    assert "max_batch_size: 0" in config
    assert 'name: "input_lengths" data_type: TYPE_INT32 dims: [ -1 ]' in config


@pytest.mark.parametrize("is_decoupled", [True, False])
def test_wish_for_a_transaction_policy_beats_the_styles_own(
    request_for: DeployRequest, is_decoupled: bool
) -> None:
    report = deploy(replace(request_for, is_decoupled=is_decoupled))
    config = (report.model_dir / "config.pbtxt").read_text()
    assert f"decoupled: {str(is_decoupled).lower()}" in config


def test_each_link_mode_brings_the_same_bytes(request_for: DeployRequest) -> None:
    source = request_for.engine_dir / "rank0.engine"
    brought = {}
    for link in ("copy", "hard", "symbolic"):
        report = deploy(replace(request_for, name=link, link=link))
        brought[link] = report.model_dir / "1" / "rank0.engine"
        assert brought[link].read_bytes() == source.read_bytes()
    assert os.stat(brought["hard"]).st_ino == source.stat().st_ino
    assert brought["symbolic"].readlink() == source.resolve()
    assert not brought["copy"].is_symlink()


def test_replacing_a_deployment_leaves_nothing_of_the_old_one(request_for: DeployRequest) -> None:
    old = deploy(request_for).model_dir / "1" / "old"
    old.write_text("x")
    deploy(replace(request_for, replace=True))
    assert not old.exists()
    assert [path.name for path in request_for.model_repository.iterdir()] == ["llama"]


def test_failure_in_the_middle_leaves_no_trace(
    request_for: DeployRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", fail)
    with pytest.raises(ConfigError, match="cross-device"):
        deploy(replace(request_for, link="hard"))
    assert not request_for.model_repository.exists()


@pytest.mark.parametrize("is_new", [True, False])
def test_disk_that_refuses_leaves_everything_as_it_was(
    request_for: DeployRequest, is_new: bool
) -> None:
    repository = request_for.model_repository / "new" / "models"
    if not is_new:
        (repository / "mine").mkdir(parents=True)
    (request_for.engine_dir / "rank0.engine").write_bytes(bytes(1 << 20))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = sorted(request_for.engine_dir.parent.rglob("*"))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 19, limits[1]))
    try:
        with pytest.raises(BuildError, match="the output cannot be written"):
            deploy(replace(request_for, model_repository=repository, name="", style=CLASSIC))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(request_for.engine_dir.parent.rglob("*")) == before
