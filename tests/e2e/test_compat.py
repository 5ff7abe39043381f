"""Old command lines, word for word, in a directory as their users have it."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import MakeTinyLlama
from tests.tiny_llama import TinyLlama
from tidemill.api.llm import LLM, SamplingParams

COMPAT = Path(__file__).parents[2] / "compat"
MODEL = "Llama-2-7b-hf"
CONVERT = (
    "python convert_checkpoint.py --model_dir ./Llama-2-7b-hf --output_dir ./llama2_7b_engine "
    "--tp_size 1 --dtype float16"
)
BUILD = (
    "trtllm-build --checkpoint_dir ./llama2_7b_engine --output_dir ./engine_output "
    "--gemm_plugin float16 --max_batch_size 64 --max_input_len 2048 --max_output_len 1024"
)
RUN = (
    "python run.py --engine_dir ./engine_output --tokenizer_dir ./Llama-2-7b-hf "
    '--max_output_len 8 --input_text "Born in north-east France, Soyer trained as a"'
)


def shell(directory: Path, line: str) -> subprocess.CompletedProcess[str]:
    """Run a line with this Python first on the path, and the scripts there and in the directory."""
    path = f"{Path(sys.executable).parent}:{directory}:{os.environ['PATH']}"
    return subprocess.run(
        shlex.split(line),
        cwd=directory,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="module")
def users_directory(
    make_tiny_llama: MakeTinyLlama, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Return a directory with the model, the scripts, and what the first two lines made of them."""
    directory = tmp_path_factory.mktemp("compat")
    shape = TinyLlama(max_position_embeddings=4096, dtype="float16", is_tied=False)
    shutil.copytree(make_tiny_llama(shape), directory / MODEL)
    for script in COMPAT.iterdir():
        if script.is_file():
            shutil.copy(script, directory)
    for line in (CONVERT, BUILD):
        done = shell(directory, line)
        assert done.returncode == 0, done.stderr
    return directory


def test_convert_and_build_lines_write_what_they_name(users_directory: Path) -> None:
    config = json.loads((users_directory / "llama2_7b_engine" / "config.json").read_text())
    assert (config["dtype"], config["mapping"]["tp_size"]) == ("float16", 1)
    built = json.loads((users_directory / "engine_output" / "config.json").read_text())
    limits = built["build_config"]
    assert (limits["max_batch_size"], limits["max_input_len"]) == (64, 2048)
    assert limits["max_seq_len"] == 2048 + 1024
    assert (users_directory / "engine_output" / "rank0.engine").is_file()


def test_run_line_answers(users_directory: Path) -> None:
    done = shell(users_directory, RUN)
    assert done.returncode == 0, done.stderr
    prompt = shlex.split(RUN)[-1]
    with LLM(users_directory / "engine_output") as llm:
        expected = llm.generate(prompt, SamplingParams(max_tokens=8))
    assert done.stdout == expected.outputs[0].text + "\n"


@pytest.mark.parametrize(
    "flags",
    [
        "--streaming",
        "--num_beams 1 --temperature 1.0 --top_k 1 --top_p 0.0 --random_seed 7",
        "--repetition_penalty 1.0 --presence_penalty 0.0 --length_penalty 1.0 --early_stopping 1",
        "--max_input_length 923 --use_py_session --log_level error --kv_cache_enable_block_reuse",
        "--temperature 0.7",
    ],
)
def test_usual_flags_change_no_greedy_answer(users_directory: Path, flags: str) -> None:
    plain, flagged = shell(users_directory, RUN), shell(users_directory, f"{RUN} {flags}")
    assert flagged.returncode == 0, flagged.stderr
    assert flagged.stdout == plain.stdout
    if "log_level" in flags:
        assert "--use_py_session: no effect here: there is one session" in flagged.stderr


def test_several_texts_give_an_answer_each(users_directory: Path) -> None:
    done = shell(users_directory, f"{RUN} Hello World --json")
    assert [answer["prompt"] for answer in json.loads(done.stdout)][1:] == ["Hello", "World"]


@pytest.mark.parametrize("kind", ["txt", "csv", "npy"])
def test_input_file_gives_the_answers_of_its_prompts(users_directory: Path, kind: str) -> None:
    rows = [[7, 8, 9, 10], [11, 12]]
    file = users_directory / f"input.{kind}"
    if kind == "txt":
        file.write_text("Hello\n\nWorld\n")
    elif kind == "csv":
        file.write_text("7,8,9,10\n11,12\n")
    else:
        np.save(file, np.array([rows[0], [*rows[1], 1, 1]], np.int32))
    line = "python run.py --engine_dir engine_output --max_output_len 8 --end_id 1 --json"
    done = shell(users_directory, f"{line} --input_file {file.name}")
    assert done.returncode == 0, done.stderr
    prompts = ["Hello", "World"] if kind == "txt" else rows
    with LLM(users_directory / "engine_output") as llm:
        expected = llm.generate(prompts, SamplingParams(max_tokens=8, end_id=1))
    answers = json.loads(done.stdout)
    assert [answer["text"] for answer in answers] == [each.outputs[0].text for each in expected]


def test_stop_words_end_an_answer(users_directory: Path) -> None:
    whole = shell(users_directory, RUN).stdout.rstrip("\n")
    stop = whole[3:5]
    done = shell(users_directory, f"{RUN} --stop_words {shlex.quote(stop)}")
    assert done.stdout == whole[: whole.index(stop)] + "\n"


def test_tokenizer_dir_takes_the_place_of_the_engines_own(users_directory: Path) -> None:
    engine = Path(shutil.copytree(users_directory / "engine_output", users_directory / "bare"))
    for path in engine.glob("tokenizer*"):
        path.unlink()
    line = RUN.replace("engine_output", "bare")
    assert shell(users_directory, line).stdout == shell(users_directory, RUN).stdout
    without = line.replace("--tokenizer_dir ./Llama-2-7b-hf", "")
    done = shell(users_directory, without)
    assert done.returncode == 1 and "the engine has no tokenizer" in done.stderr
