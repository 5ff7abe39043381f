"""Mistakes on the command line: four parts on stderr, a non-zero exit, nothing written."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import typer

from tidemill.api.build import BuildRequest, build
from tidemill.api.convert import ConvertRequest, convert
from tidemill.base.errors import ConfigError, UnsupportedError
from tidemill.frontends.cli import convert_checkpoint_flags
from tidemill.frontends.cli.build import SCHEMES, resolve_max_seq_len
from tidemill.frontends.cli.foreign_flags import read_foreign_flags
from tidemill.frontends.cli.main import app
from tidemill.frontends.cli.prompts import read_prompts
from tidemill.frontends.cli.shell import EXIT_FAILED, EXIT_STOPPED, EXIT_USAGE, run_app
from tidemill.quant.schemes import NAME_TO_SCHEME, find_cache_dtype, find_scheme

REFUSED = [row for row in convert_checkpoint_flags.TABLE if row.is_refused]


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["convert", "--model_dir", "m", "--dtype", "float15"], "did you mean float16?"),
        (["build", "--checkpoint_dir", "c", "--gemm_plugin", "int3"], "--gemm_plugin of build"),
        (["build", "--checkpoint_dir", "c", "--gemm_plugin"], "got: nothing"),
        (["build", "--checkpoint_dir", "c", "--opt_num_tokens", "x"], "an integer"),
        (["build", "--checkpoint_dir", "c", "--fast_build=1"], "--fast_build"),
        (["build", "--checkpoint_dir", "c", "--gem_plugin", "auto"], "mean --gemm_plugin?"),
        (["build", "--checkpoint_dir", "c", "--ouput-dir=e"], "mean --output_dir?"),
        (["inspect", "--egine_dir", "e"], "option: --egine_dir (Possible options: --eng"),
        (["build", "--checkpoint_dir", "c", "stray"], "'stray'"),
        (["build", "--checkpoint_dir", "c", "--max_batch_size", "0"], "--max_batch_size"),
        (["build"], "--checkpoint_dir"),
        (["inspect", "--engine_dir", "e", "--what", "grph"], "did you mean graph?"),
        (["deploy", "--engine_dir", "e", "--model_repository", "r", "--name", "n",
          "--style", "ensemble"], "one of text, tokens"),
        (["deploy", "--from", "m", "--model_repository", "r", "--style", "llmapi", "--num_threads",
          "1"], "--style, --num_threads"),
        (["run", "--engine_dir", "e"], "no prompt"),
        (["biuld"], "tidemill --help"),
        (["serve", "--model_repository", "r", "--http_port", "70000"], "--http_port"),
    ],
)  # fmt: skip
def test_bad_command_line_is_a_usage_error(
    arguments: list[str], part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_app(app, arguments) == EXIT_USAGE
    printed = capsys.readouterr().err
    assert part in printed
    assert "where: " in printed and "got: " in printed and "try: " in printed
    assert "Traceback" not in printed


def test_stopped_command_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    stopped = typer.Typer()

    @stopped.command()
    def wait() -> None:
        raise KeyboardInterrupt

    assert run_app(stopped, []) == EXIT_STOPPED
    assert capsys.readouterr().err.strip() == "stopped"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_build_that_is_told_to_end_leaves_nothing_behind(
    tiny_llama: Path, tmp_path: Path, number: signal.Signals
) -> None:
    convert(ConvertRequest(tiny_llama, tmp_path / "checkpoint"))
    command = [sys.executable, "-m", "tidemill", "build", "--checkpoint_dir", "checkpoint"]
    # Under nohup SIGHUP is ignored, here and by what is started here.
    building = subprocess.Popen(
        [*command, "--output_dir", "out/engine"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        preexec_fn=partial(signal.signal, number, signal.SIG_DFL),
    )
    while not any(tmp_path.glob("out/.engine.partial-*")):
        assert building.poll() is None
        time.sleep(0.01)
    building.send_signal(number)
    _, printed = building.communicate()
    assert building.returncode == EXIT_STOPPED and printed.endswith(b"stopped\n")
    assert not (tmp_path / "out").exists()


def test_characters_that_a_terminal_lacks(tmp_path: Path) -> None:
    cache = tmp_path / "\u00fc\u65e5"
    sample = cache / "tidemill" / "sample" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    sample.parent.mkdir(parents=True)
    sample.touch()
    command = [sys.executable, "-m", "tidemill", "sample"]
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert done.returncode == 0 and rb"\xfc\u65e5" in done.stdout


def test_stderr_that_is_closed(tiny_llama: Path, tmp_path: Path) -> None:
    verb = ["convert", "--model_dir", str(tiny_llama), "--output_dir", str(tmp_path / "out")]
    command = shlex.join([sys.executable, "-m", "tidemill", *verb]) + " 2>&-"
    subprocess.run(command, shell=True, stdout=subprocess.DEVNULL, check=True)
    assert (tmp_path / "out" / "config.json").exists()


def test_debug_level_one_shows_the_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TIDEMILL_DEBUG", "1")
    assert run_app(app, ["convert", "--model_dir", "m", "--dtype", "float15"]) == EXIT_USAGE
    assert "Traceback" in capsys.readouterr().err


def test_flags_that_would_change_weights_are_refused_all_at_once(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    output = tmp_path / "ckpt"
    arguments = ["convert", "--model_dir", "m", "--output_dir", str(output)]
    assert run_app(app, [*arguments, "--use_fp8", "--per_token"]) == EXIT_FAILED
    printed = capsys.readouterr().err
    assert "--use_fp8: not yet" in printed and "--per_token: not yet" in printed
    assert not output.exists()


def test_weight_only_precision_alone_is_said_to_do_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = ["convert", "--model_dir", str(tmp_path), "--output_dir", str(tmp_path / "o")]
    for more, is_said in (([], True), (["--use_weight_only"], False)):
        run_app(app, [*arguments, "--weight_only_precision", "int4", *more])
        printed = capsys.readouterr().err
        assert ("int4: no effect without --use_weight_only" in printed) is is_said


def test_every_refused_flag_of_convert_is_named() -> None:
    for row in REFUSED:
        value = {"nothing": [], "text": ["x"]}.get(getattr(row.values, "value", ""), ["2"])
        value = [row.values[0]] if isinstance(row.values, tuple) else value
        with pytest.raises(UnsupportedError, match=row.name):
            read_foreign_flags("convert", [row], [row.name, *value])


def test_two_flags_disagree_about_the_longest_sequence() -> None:
    with pytest.raises(ConfigError, match="disagree"):
        resolve_max_seq_len(max_seq_len=100, max_input_len=60, max_output_len=60)


def test_file_of_prompts_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_prompts([], tmp_path / "absent.txt")


def test_file_of_prompts_is_not_text(tmp_path: Path) -> None:
    file = tmp_path / "prompts.npy"
    file.write_bytes(b"\x93NUMPY\xff\xfe")
    with pytest.raises(ConfigError, match="one prompt on each line"):
        read_prompts([], file)


def test_file_of_prompts_is_empty(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("\n\n")
    with pytest.raises(ConfigError, match="nothing to answer"):
        read_prompts([], file)


@pytest.mark.parametrize(
    ("name", "content"),
    [("p.csv", b"1,2\n3,x\n"), ("p.npy", b"no array"), ("p.npy", b""), ("p.csv", b"\xff\xfe")],
)
def test_file_of_tokens_is_not_one(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=r"token ids in \.csv and \.npy"):
        read_prompts([], tmp_path / name)


@pytest.mark.parametrize("array", [np.zeros((1, 1, 1), np.int32), np.ones(3), np.array("x")])
def test_array_of_tokens_has_another_shape_or_type(tmp_path: Path, array: npt.NDArray[Any]) -> None:
    np.save(tmp_path / "p.npy", array)
    with pytest.raises(ConfigError, match="one or two dimensions"):
        read_prompts([], tmp_path / "p.npy")


def test_unknown_scheme_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="w8a8") as caught:
        find_scheme("w7a7", "--quant")
    assert "--quant" in str(caught.value) and "w7a7" in str(caught.value)


def test_unknown_type_of_the_kv_cache_names_the_ones_we_know() -> None:
    with pytest.raises(ConfigError, match="none, int8, fp8") as caught:
        find_cache_dtype("int4", "--kv_cache_dtype")
    assert "--kv_cache_dtype" in str(caught.value) and "int4" in str(caught.value)


def test_two_types_of_the_kv_cache_are_refused(tiny_llama: Path, tmp_path: Path) -> None:
    both = ConvertRequest(tiny_llama, tmp_path / "c", int8_kv_cache=True, fp8_kv_cache=True)
    with pytest.raises(ConfigError, match="at most one"):
        convert(both)


def test_help_of_build_names_every_scheme() -> None:
    assert tuple(NAME_TO_SCHEME) == SCHEMES


def test_scheme_that_a_shell_left_empty_is_no_default(tiny_llama: Path, tmp_path: Path) -> None:
    convert(ConvertRequest(tiny_llama, tmp_path / "checkpoint"))
    with pytest.raises(ConfigError, match="unknown quantisation scheme"):
        build(BuildRequest(tmp_path / "checkpoint", tmp_path / "engine", quant=""))


def test_groups_that_do_not_divide_the_inputs_are_refused(tiny_llama: Path, tmp_path: Path) -> None:
    convert(ConvertRequest(tiny_llama, tmp_path / "checkpoint"))
    plain = BuildRequest(tmp_path / "checkpoint", tmp_path / "engine")
    for flag, request in (
        ("quant", replace(plain, quant="w4a8_g64")),
        ("quant_head", replace(plain, quant_head="w4a8_g64")),
    ):
        with pytest.raises(UnsupportedError, match="groups do not divide") as caught:
            build(request)
        assert f", --{flag}\n" in str(caught.value) and "48" in str(caught.value)
        assert not (tmp_path / "engine").exists()


def test_streamed_tokens_and_json_on_one_output(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["run", "--engine_dir", "engine", "--input_text", "x", "--json", "--streaming"]
    assert run_app(app, command) == EXIT_USAGE
    assert "cannot share one output" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["empty", "checkpoint", "org/name"])
def test_run_is_given_something_that_is_no_engine(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / kind
    if kind != "org/name":
        place.mkdir()
    if kind == "checkpoint":
        (place / "config.json").write_text('{"architecture": "LlamaForCausalLM"}')
    assert run_app(app, ["run", "--engine_dir", str(place), "--input_text", "x"]) == EXIT_FAILED
    shown = capsys.readouterr().err
    assert "there is no engine" in shown and "tidemill build" in shown


def test_port_of_the_demo_is_in_use(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        command = ["demo", "--once", "--http_port", str(port), "--work_dir", str(tmp_path / "d")]
        assert run_app(app, command) == EXIT_FAILED
    assert "the demo's port cannot be opened" in capsys.readouterr().err
    assert not (tmp_path / "d").exists()


def test_template_that_is_not_there(tmp_path: Path) -> None:
    script = Path(__file__).resolve().parents[2] / "compat" / "fill_template.py"
    done = subprocess.run(
        [sys.executable, script, tmp_path / "none.pbtxt", "a:b"], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: the template cannot be filled\n  where: ")


def test_kernels_of_another_cpu_cannot_be_tuned(tiny_llama: Path, tmp_path: Path) -> None:
    convert(ConvertRequest(tiny_llama, tmp_path / "checkpoint"))
    foreign = "aarch64-neon"
    request = BuildRequest(
        tmp_path / "checkpoint", tmp_path / "engine", target=foreign, is_tuned=True
    )
    with pytest.raises(ConfigError, match="cannot be timed on this machine") as caught:
        build(request)
    assert foreign in str(caught.value) and "--tune" in str(caught.value)
