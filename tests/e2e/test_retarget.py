"""Engines that were compiled for another CPU: recompiled as they load, and the same afterwards.

Another CPU is this one with features hidden, or an engine whose target this machine does not have.
The judge is an engine built for the lesser CPU in the first place.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import MakeTinyLlama
from tests.tiny_llama import TinyLlama
from tidemill.api import retarget
from tidemill.api.build import BuildRequest, build
from tidemill.api.convert import ConvertRequest, convert
from tidemill.api.llm import LLM, SamplingParams
from tidemill.api.profile import ProfileRequest, profile_engine
from tidemill.api.retarget import compile_for, ensure_native_code
from tidemill.base import target
from tidemill.base.errors import EngineTargetError, SessionError
from tidemill.base.target import AARCH64, TARGETS, X86_64_V3, Target, host_targets
from tidemill.builder.cpu_plan import CpuPlan
from tidemill.engine import native_code
from tidemill.engine.native_code import find_native_code, write_cached_code
from tidemill.engine.reader import EngineFile

PROMPTS = [[3, 99, 7], list(range(20, 90)), [101]]
PARAMS = SamplingParams(max_tokens=20, temperature=0.8, seed=5, ignore_eos=True)

Hide = Callable[[Target], None]
BuildFor = Callable[[str], Path]
pytestmark = pytest.mark.skipif(not host_targets(), reason="needs a CPU that engines run on")


@pytest.fixture(scope="module")
def checkpoint(make_tiny_llama: MakeTinyLlama, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("retarget") / "checkpoint"
    model = make_tiny_llama(TinyLlama(head_size=16))
    convert(ConvertRequest(model, directory, dtype="bfloat16"))
    return directory


@pytest.fixture(scope="module")
def build_for(checkpoint: Path) -> BuildFor:
    """Return a builder of engines by target; each is built once."""
    made: dict[str, Path] = {}

    def build_once(name: str) -> Path:
        if name not in made:
            made[name] = checkpoint.parent / name
            limits: dict[str, Any] = {"max_batch_size": 4, "max_seq_len": 128}
            build(BuildRequest(checkpoint, made[name], target=name, **limits))
        return made[name]

    return build_once


@pytest.fixture
def hide_above(monkeypatch: pytest.MonkeyPatch) -> Hide:
    """Return what makes this CPU look like one of a target and nothing more."""

    def hide(floor: Target) -> None:
        monkeypatch.setattr(target, "host_features", lambda: floor.required)
        monkeypatch.setattr(native_code, "host_features", lambda: floor.required)

    return hide


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tidemill" / "code"


def answers(engine_dir: Path) -> list[list[int]]:
    with LLM(engine_dir, kv_cache_tokens=512) as llm:
        return [output.outputs[0].token_ids for output in llm.generate(PROMPTS, PARAMS)]


def without_llvmlite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)


# Weights are packed alike for all: each of these runs here after a recompilation for v3.
@pytest.mark.parametrize("name", [t.name for t in TARGETS if t is not X86_64_V3])
def test_engine_of_another_target_is_recompiled_as_it_loads(
    name: str,
    build_for: BuildFor,
    hide_above: Hide,
    capsys: pytest.CaptureFixture[str],
) -> None:
    foreign = build_for(name)
    native = build_for(X86_64_V3.name)
    hide_above(X86_64_V3)
    assert answers(foreign) == answers(native)
    printed = capsys.readouterr().err
    assert f"was compiled for {name}; recompiled for x86-64-v3" in printed


def test_recompiled_code_is_kept_and_used_without_a_compiler(
    build_for: BuildFor,
    hide_above: Hide,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    foreign = build_for(AARCH64.name)
    hide_above(X86_64_V3)
    first = answers(foreign)
    (kept,) = cache.iterdir()
    assert kept.stat().st_mode & 0o077 == 0
    capsys.readouterr()
    without_llvmlite(monkeypatch)
    assert answers(foreign) == first
    assert capsys.readouterr().err == ""


def test_profile_of_an_engine_for_another_target_is_of_its_recompiled_code(
    build_for: BuildFor, hide_above: Hide
) -> None:
    foreign = build_for(AARCH64.name)
    hide_above(X86_64_V3)
    report = profile_engine(ProfileRequest(foreign, position=9, num_rounds=1))
    assert report.target == X86_64_V3.name


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "of another engine", "shared"])
def test_cached_code_that_does_not_check_out_is_compiled_again(
    damage: str, build_for: BuildFor, hide_above: Hide, cache: Path
) -> None:
    foreign = build_for(AARCH64.name)
    hide_above(X86_64_V3)
    ensure_native_code(foreign)
    (kept,) = cache.iterdir()
    good = kept.read_bytes()
    flipped = good[:-9] + bytes([good[-9] ^ 1]) + good[-8:]
    other = good.replace(good[11:43], b"0" * 32, 1)
    bad = {"cut": good[:-1], "flipped": flipped, "empty": b"", "of another engine": other}
    kept.write_bytes(bad.get(damage, good))
    kept.chmod(0o666 if damage == "shared" else 0o600)
    with EngineFile.open(foreign) as engine, pytest.raises(EngineTargetError):
        find_native_code(engine)
    ensure_native_code(foreign)
    assert kept.read_bytes() == good


def test_without_a_compiler_the_error_names_both_targets_and_the_rebuild(
    checkpoint: Path, build_for: BuildFor, hide_above: Hide, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign = build_for("x86-64-v4-bf16")
    hide_above(X86_64_V3)
    without_llvmlite(monkeypatch)
    with pytest.raises(EngineTargetError) as caught:
        LLM(foreign)
    text = str(caught.value)
    assert "where: " + str(foreign) in text
    assert "expected: a CPU of target x86-64-v4-bf16 (" in text
    assert "got: a CPU of target x86-64-v3, which lacks avx512_bf16" in text
    assert "install llvmlite" in text
    assert f"tidemill build --checkpoint_dir {checkpoint} --output_dir {foreign}" in text


@pytest.mark.parametrize("part", ["plan", "scratch_bytes_per_thread", "shared_scratch_bytes"])
def test_weights_that_are_packed_for_their_target_alone_are_refused(
    part: str, build_for: BuildFor, hide_above: Hide, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign = build_for(AARCH64.name)
    hide_above(X86_64_V3)
    lower = retarget._lower_again

    def lower_otherwise(engine: EngineFile, target: Target) -> CpuPlan:
        lowered = lower(engine, target)
        value = getattr(lowered, part)
        other: Any = value[1:] if part == "plan" else value + 64
        return replace(lowered, **{part: other})

    monkeypatch.setattr(retarget, "_lower_again", lower_otherwise)
    with pytest.raises(EngineTargetError, match="its plan is for that target, or by"):
        ensure_native_code(foreign)


def test_cache_that_cannot_be_written(
    build_for: BuildFor, tmp_path: Path, hide_above: Hide, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign = build_for(AARCH64.name)
    hide_above(X86_64_V3)
    (tmp_path / "file").write_text("mine")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(SessionError, match="cannot be kept") as caught:
        ensure_native_code(foreign)
    assert "XDG_CACHE_HOME" in caught.value.hint


def test_cache_keeps_the_code_that_was_used_last(
    build_for: BuildFor, hide_above: Hide, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native_code, "MAX_CACHED_FILES", 3)
    foreign = build_for(AARCH64.name)
    cache.mkdir(mode=0o700, parents=True)
    for age in range(1, 6):
        old = cache / f".partial-{age}"
        old.write_bytes(b"left by a process that was killed")
        os.utime(old, (1e9 - age, 1e9 - age))
    hide_above(X86_64_V3)
    ensure_native_code(foreign)
    kept = sorted(path.name for path in cache.iterdir())
    assert kept[:2] == [".partial-1", ".partial-2"] and kept[2].endswith("x86-64-v3.code")
    os.utime(cache / kept[2], (1, 1))
    with EngineFile.open(foreign) as engine:
        find_native_code(engine)
    assert (cache / kept[2]).stat().st_mtime > 1e9


def test_every_target_recompiles_to_the_code_that_a_build_makes(
    build_for: BuildFor, cache: Path
) -> None:
    own = build_for(X86_64_V3.name)
    with EngineFile.open(own) as engine:
        for each in TARGETS:
            built = build_for(each.name)
            code = compile_for(engine, each)
            with EngineFile.open(built) as other:
                assert code.section == other.manifest.code
                assert code.image == other.code_image()
            assert write_cached_code(engine, code).parent == cache
