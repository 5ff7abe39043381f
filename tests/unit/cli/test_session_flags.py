"""The flags that say how an engine is run, on the verbs that have them."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.unit.host.fake_engine import write_tokenizer
from tidemill.base.errors import ConfigError
from tidemill.frontends.cli.main import app
from tidemill.frontends.cli.session_flags import FLAGS, read_session
from tidemill.frontends.triton.deploy import deploy
from tidemill.frontends.triton.deploy_request import DeployRequest
from tidemill.host import runtime_settings
from tidemill.host.config import SessionConfig
from tidemill.runtime.config import CapacityPolicy, RuntimeConfig


def test_every_setting_of_the_runtime_has_a_flag() -> None:
    own = ("max_tokens_in_paged_kv_cache", "kv_cache_free_gpu_mem_fraction", "num_threads")
    assert {flag.name for flag in FLAGS} >= {*runtime_settings.NAMES, *own}


@pytest.mark.parametrize("verb", ["run", "bench", "deploy", "serve"])
def test_verbs_list_the_flags_in_their_help(verb: str) -> None:
    printed = CliRunner().invoke(app, [verb, "--help"]).output
    missing = [flag.name for flag in FLAGS if f"--{flag.name}" not in printed]
    assert not missing


def test_what_was_chosen_is_read_and_told(capsys: pytest.CaptureFixture[str]) -> None:
    session = read_session({"batch_scheduler_policy": "max_utilization"})
    runtime = RuntimeConfig(CapacityPolicy.MAX_UTILIZATION)
    assert session == SessionConfig(runtime=runtime, pin_threads=True)
    told = capsys.readouterr().err
    assert "batch_scheduler_policy max_utilization (user)" in told
    assert "max_queue_size 0 (default)" in told


def test_flags_reach_the_verb_as_texts_in_every_spelling(tmp_path: Path) -> None:
    flags = [
        "--scheduler-policy=static_batch",
        "--no-enable-kv-cache-reuse",
        "--max_draft_len",
        "4",
    ]
    named = ["--engine_dir", "x", "--model_repository", str(tmp_path / "r"), "--name", "m"]
    result = CliRunner().invoke(app, ["deploy", *named, *flags, "--max_step_ms", "much"])
    assert result.exit_code == 2 and "max_step_ms" in result.output
    result = CliRunner().invoke(app, ["deploy", *named, *flags, "--max_queue_size=-1"])
    assert isinstance(result.exception, ConfigError)
    assert "max_queue_size must be at least 0" in str(result.exception)


def test_deploy_writes_settings_into_the_config_of_the_engine(tmp_path: Path) -> None:
    engine = tmp_path / "engine"
    engine.mkdir()
    write_tokenizer(engine)
    (engine / "config.json").write_text('{"build_config": {"max_batch_size": 4}}')
    (engine / "rank0.engine").write_bytes(b"engine")
    settings = {"batch_scheduler_policy": "max_utilization"}
    request = DeployRequest(engine, tmp_path / "r", "", "inflight_batcher_llm", settings=settings)
    deploy(request)
    texts = {path.parent.name: path.read_text() for path in tmp_path.glob("r/*/config.pbtxt")}
    assert [name for name, text in texts.items() if "max_utilization" in text] == ["tensorrt_llm"]
