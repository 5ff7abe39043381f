"""`LLM(model)` of every kind of source: built once, kept by content, the same tokens."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import MakeTinyLlama
from tests.tiny_llama import TinyLlama
from tidemill import LLM, SamplingParams
from tidemill.api.convert import ConvertRequest, convert
from tidemill.base.errors import ConfigError
from tidemill.host.client import HostClient
from tidemill.host.config import HostConfig

PROMPT = [5, 77, 130, 9]
PARAMS = SamplingParams(max_tokens=12, ignore_eos=True)


@pytest.fixture(scope="module")
def model_dir(make_tiny_llama: MakeTinyLlama) -> Path:
    return make_tiny_llama(TinyLlama(head_size=16))


def tokens(model: Path, cache: Path, **options: int) -> list[int]:
    with LLM(model, cache_dir=cache, max_seq_len=128, **options) as llm:
        return llm.generate(PROMPT, PARAMS).outputs[0].token_ids


def engines(cache: Path) -> list[Path]:
    return sorted(cache.glob("*/*.engine"))


def test_directory_checkpoint_and_engine_give_the_same_tokens(
    model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "cache"
    first = tokens(model_dir, cache)
    assert "converting and building" in capsys.readouterr().err
    convert(ConvertRequest(model_dir, tmp_path / "checkpoint"))
    assert tokens(tmp_path / "checkpoint", cache) == first
    engine_dir = engines(cache)[0].parent
    with LLM(engine_dir) as llm:
        assert llm.generate(PROMPT, PARAMS).outputs[0].token_ids == first
    assert not list(cache.glob(".*checkpoint*")), "a checkpoint was left behind"


def test_same_content_and_options_are_built_once(
    model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache, copied = tmp_path / "cache", tmp_path / model_dir.name
    shutil.copytree(model_dir, copied)
    tokens(model_dir, cache)
    capsys.readouterr()
    tokens(copied, cache)
    assert capsys.readouterr().err == "" and len(engines(cache)) == 1
    tokens(model_dir, cache, max_batch_size=3)
    config = copied / "config.json"
    config.write_text(config.read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))
    tokens(copied, cache)
    assert len(engines(cache)) == 3


def test_processes_that_want_the_same_build_it_once(model_dir: Path, tmp_path: Path) -> None:
    script = "import sys; from tidemill import LLM; LLM(sys.argv[1], cache_dir=sys.argv[2]).close()"
    command = [sys.executable, "-c", script, str(model_dir), str(tmp_path)]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    said = [process.communicate(timeout=120)[1] for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], said
    assert sum("converting and building" in each for each in said) == 1
    assert len(engines(tmp_path)) == 1


def test_engine_that_was_used_longest_ago_goes_and_one_in_use_stays(
    model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def load(size: int, **options: int) -> LLM:
        return LLM(model_dir, cache_dir=tmp_path, max_seq_len=128, max_batch_size=size, **options)

    def kept() -> set[Path]:
        return {path.parent for path in engines(tmp_path)}

    with load(1):
        (first,) = kept()
        load(2).close()
        (second,) = kept() - {first}
        load(1).close()  # so that the second was used longest ago
        engine_bytes = sum(path.stat().st_size for path in first.iterdir())
        with load(3, max_cache_bytes=2 * engine_bytes + engine_bytes // 2):
            assert first in kept() and second not in kept() and len(kept()) == 2
            assert f"removed {second}" in capsys.readouterr().err
            with LLM(first) as named, load(4, max_cache_bytes=0):
                assert first in kept() and len(kept()) == 3, "all are in use"
                assert named.generate(PROMPT, PARAMS).outputs
    with LLM(next(first.glob("*.engine"))), load(4, max_cache_bytes=0):
        assert first in kept() and len(kept()) == 2, "its file was named, not its directory"
    for path in tmp_path.glob("*.use"):
        path.unlink()  # as engines were kept before
    (tmp_path / "own").mkdir()
    shutil.copytree(first, tmp_path / "own" / first.name)
    shutil.copytree(first, tmp_path / "poetry")
    (tmp_path / "poetry.lock").touch()
    with load(4, max_cache_bytes=0):
        assert first not in kept() and len(kept()) == 2, "what the user put there stays"
    assert (tmp_path / "own" / first.name).exists()


def test_engine_of_a_running_host_stays(model_dir: Path, tmp_path: Path) -> None:
    tokens(model_dir, tmp_path)
    (engine,) = engines(tmp_path)
    with HostClient.connect_or_start(engine.parent, None, HostConfig(grace_seconds=0.1)):
        tokens(model_dir, tmp_path, max_batch_size=3, max_cache_bytes=0)
        assert engine.exists()


def test_schemes_are_those_that_were_asked_for(model_dir: Path, tmp_path: Path) -> None:
    with LLM(model_dir, cache_dir=tmp_path, max_seq_len=128, quant="w8a8", kv_cache_dtype="int8"):
        (engine,) = engines(tmp_path)
    built = json.loads((engine.parent / "config.json").read_text())["build_config"]
    schemes = built["quant"], built["quant_head"], built["kv_cache_dtype"]
    assert schemes == ("w8a8", "w8a8", "int8")
    with pytest.raises(ConfigError, match="unknown quantisation scheme"):
        LLM(model_dir, cache_dir=tmp_path, quant="w9a9")
    with pytest.raises(ConfigError, match="for one that is built"):
        LLM(engine.parent, quant="w8a8")


def test_what_a_killed_process_left_goes_with_the_next_build(
    model_dir: Path, tmp_path: Path
) -> None:
    tokens(model_dir, tmp_path)
    (engine,) = engines(tmp_path)
    left = tmp_path / f".{engine.parent.name}.checkpoint-1"
    left.mkdir()
    shutil.rmtree(engine.parent)
    tokens(model_dir, tmp_path)
    assert engine.exists() and not left.exists()


def test_sample_gguf_answers_from_its_file(sample_gguf: Path, tmp_path: Path) -> None:
    with LLM(sample_gguf, cache_dir=tmp_path, max_seq_len=256) as llm:
        output = llm.generate("The capital of France is", SamplingParams(max_tokens=3))
    assert "Paris" in output.outputs[0].text
