"""Files that somebody bent: every reader answers with four parts, never with a traceback.

Values that no field should have, in every field; flipped and missing bytes; files that are not
files. What a reader accepts all the same must come out whole. Seeded; each case is small.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from tests.sentencepiece_file import write_sentencepiece
from tidemill.api.build import BuildRequest, build
from tidemill.api.convert import ConvertRequest, convert
from tidemill.base.errors import CheckpointError, ConfigError, TidemillError
from tidemill.base.json_text import parse_json
from tidemill.frontends.cli.main import app
from tidemill.frontends.cli.shell import EXIT_FAILED, EXIT_USAGE, run_app
from tidemill.text.tokenizer import Tokenizer

SEED = 41
ODD: tuple[Any, ...] = (
    None, True, -1, 0, 1.5, float("nan"), float("inf"), 2**63, 10**30, -(10**30), 1e308, "", "x",
    "\ud800", [], [1], [None], {}, {"a": 1}, {"rope_type": ["x"]}, {"rope_type": "llama3"},
    {"rope_type": "linear", "factor": float("inf")}, {"rope_type": "linear", "factor": 1e-300},
)  # fmt: skip
NOT_JSON = (b"", b"{", b"[]", b"null", b"\xff" * 9, b"\0" * 9, b"[" * 200_000, b'{"a": "\\ud800"}')


@pytest.fixture
def model(tiny_llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_llama, tmp_path / "model"))


def answers_well(action: Callable[[], object]) -> None:
    """Run what may succeed or refuse, but not otherwise fail; a refusal has all four parts."""
    try:
        action()
    except TidemillError as error:
        assert error.what and error.where and error.hint, str(error)
        assert error.expected or error.got, str(error)


def converts_or_refuses(model_dir: Path) -> None:
    output = model_dir.parent / "out"
    answers_well(lambda: convert(ConvertRequest(model_dir, output)))
    shutil.rmtree(output, ignore_errors=True)
    assert not list(model_dir.parent.glob(".*partial*"))


def flipped(data: bytes, chance: random.Random, end: int) -> bytes:
    bent = bytearray(data)
    for _ in range(chance.randint(1, 3)):
        bent[chance.randrange(end)] = chance.choice([0, 1, 128, 255, chance.randrange(256)])
    return bytes(bent)


def test_any_value_in_any_field_of_a_hugging_face_config(model: Path) -> None:
    path = model / "config.json"
    config = json.loads(path.read_text())
    extra = ["rope_scaling", "rope_theta", "torch_dtype", "quantization_config", "sliding_window"]
    for key in [*config, *extra]:
        for value in ODD:
            path.write_text(json.dumps({**config, key: value}))
            converts_or_refuses(model)


def test_any_value_in_any_field_of_a_checkpoint_config(model: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    convert(ConvertRequest(model, checkpoint))
    path = checkpoint / "config.json"
    config = json.loads(path.read_text())
    chance = random.Random(SEED)
    request = BuildRequest(checkpoint, tmp_path / "engine", 1, 16, 16, 16)
    for key in config:
        for value in ODD:
            path.write_text(json.dumps({**config, key: value}))
            converts_or_refuses(checkpoint)
        path.write_text(json.dumps({**config, key: chance.choice(ODD)}))
        answers_well(lambda: build(request))


@pytest.mark.parametrize("field", ["dtype", "shape", "data_offsets", "the whole row"])
def test_any_value_in_a_safetensors_header(model: Path, field: str) -> None:
    path = model / "model.safetensors"
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    name = next(name for name in header if name != "__metadata__")
    ranges = ([-1], [2**63, 2], [0, 10**30], [1.5, 2.5], ["1", "2"], [1, [2]], "12", "F8_E4M3")
    for value in (*ODD, *ranges):
        row = value if field == "the whole row" else {**header[name], field: value}
        text = json.dumps({**header, name: row}).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + data[end:])
        converts_or_refuses(model)


@pytest.mark.parametrize("length", [0, 1, 2**31, 2**63 - 1, 2**64 - 1])
def test_any_length_of_a_safetensors_header(model: Path, length: int) -> None:
    path = model / "model.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + path.read_bytes()[8:])
    with pytest.raises(CheckpointError):
        convert(ConvertRequest(model, model.parent / "out"))


def test_flipped_bytes_in_a_safetensors_header(model: Path) -> None:
    print(f"seed {SEED}")
    chance, path = random.Random(SEED), model / "model.safetensors"
    data = path.read_bytes()
    for _ in range(100):
        path.write_bytes(flipped(data, chance, 8 + int.from_bytes(data[:8], "little")))
        converts_or_refuses(model)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "", ".", "a\0b", "a/b"])
def test_index_that_names_files_elsewhere(model: Path, name: str) -> None:
    (model.parent / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes())
    index = {"weight_map": {"model.norm.weight": name}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"of other directories|are missing"):
        convert(ConvertRequest(model, model.parent / "out"))


@pytest.mark.parametrize(
    "kind", ["directory", "link to itself", "link to nowhere", "device", "pipe"]
)
@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
)
def test_files_that_are_not_files(model: Path, name: str, kind: str) -> None:
    path = model / name
    path.unlink()
    if kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        no, device = model / "no", Path("/dev/full")
        path.symlink_to({"link to itself": path, "link to nowhere": no, "device": device}[kind])
    converts_or_refuses(model)
    answers_well(lambda: Tokenizer.from_directory(model))


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"]
)
def test_files_of_json_that_are_none(model: Path, name: str) -> None:
    for content in NOT_JSON:
        (model / name).write_bytes(content)
        converts_or_refuses(model)
        answers_well(lambda: Tokenizer.from_directory(model))


def test_chat_templates_of_any_form(model: Path) -> None:
    (model / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(CheckpointError, match="chat_template"):
        Tokenizer.from_directory(model)
    (model / "chat_template.jinja").unlink()
    for value in (*ODD, [{"name": "default"}], ["default"], [{"name": "default", "template": 1}]):
        (model / "tokenizer_config.json").write_text(json.dumps({"chat_template": value}))
        answers_well(lambda: Tokenizer.from_directory(model))


def test_added_tokens_of_any_form_beside_a_sentencepiece_model(model: Path) -> None:
    (model / "tokenizer.json").unlink()
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "a", "b"]
    write_sentencepiece(model / "tokenizer.model", pieces)
    for value in ODD:
        for added in (value, {"261": value}, {"261": {"content": value}}, {"x": {"content": "a"}}):
            settings = {"added_tokens_decoder": added}
            (model / "tokenizer_config.json").write_text(json.dumps(settings))
            converts_or_refuses(model)


def test_flipped_and_missing_bytes_of_a_sentencepiece_model(model: Path) -> None:
    print(f"seed {SEED}")
    (model / "tokenizer.json").unlink()
    path = model / "tokenizer.model"
    write_sentencepiece(path, ["<unk>", "<s>", "</s>", "a", "b", "ab"])
    data, chance = path.read_bytes(), random.Random(SEED)
    cuts = [data[:end] for end in range(0, len(data), 3)]
    for bent in (*cuts, *(flipped(data, chance, len(data)) for _ in range(100))):
        path.write_bytes(bent)
        converts_or_refuses(model)


GGUF_KEYS: dict[str, tuple[str, Any]] = {
    "llama.block_count": ("uint32", 1),
    "llama.context_length": ("uint32", 64),
    "llama.embedding_length": ("uint32", 48),
    "llama.feed_forward_length": ("uint32", 104),
    "llama.attention.head_count": ("uint32", 6),
    "llama.attention.head_count_kv": ("uint32", 2),
    "llama.attention.layer_norm_rms_epsilon": ("float32", 1e-5),
    "llama.rope.freq_base": ("float32", 1e4),
    "general.alignment": ("uint32", 32),
    "split.count": ("uint16", 1),
    "tokenizer.ggml.model": ("string", "gpt2"),
    "tokenizer.ggml.pre": ("string", "smollm"),
    "tokenizer.ggml.tokens": ("array", ["<s>", "</s>", *(chr(256 + i) for i in range(61))]),
    "tokenizer.ggml.token_type": ("array", [3, 3] + [1] * 61),
    "tokenizer.ggml.merges": ("array", ["a b"]),
    "tokenizer.ggml.bos_token_id": ("uint32", 0),
}
GGUF_SHAPES = {
    "token_embd": (63, 48),
    "output_norm": (48,),
    "blk.0.attn_norm": (48,),
    "blk.0.ffn_norm": (48,),
    "blk.0.attn_q": (48, 48),
    "blk.0.attn_k": (16, 48),
    "blk.0.attn_v": (16, 48),
    "blk.0.attn_output": (48, 48),
    "blk.0.ffn_gate": (104, 48),
    "blk.0.ffn_up": (104, 48),
    "blk.0.ffn_down": (48, 104),
}


def write_gguf(path: Path, **changes: tuple[str, Any]) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    for key, (kind, value) in {**GGUF_KEYS, **changes}.items():
        getattr(writer, f"add_{kind}")(key, value)
    for name, shape in GGUF_SHAPES.items():
        writer.add_tensor(f"{name}.weight", np.full(shape, 0.01, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def gguf_path(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "gguf").mkdir()
    path = tmp_path / "gguf" / "model.gguf"
    write_gguf(path)
    convert(ConvertRequest(path, tmp_path / "good"))
    yield path


def test_any_value_of_any_kind_in_gguf_metadata(gguf_path: Path) -> None:
    odd: list[tuple[str, Any]] = [
        ("uint32", 0), ("uint32", 2**32 - 1), ("int32", -1), ("uint64", 2**64 - 1), ("bool", True),
        ("float32", float("nan")), ("float32", float("inf")), ("float64", -1e300), ("string", ""),
        ("string", "x"), ("array", [1]), ("array", ["a"]), ("array", [0.5]), ("array", [9] * 63),
        ("array", list(range(63))), ("array", [""] * 63),
    ]  # fmt: skip
    for key in GGUF_KEYS:
        for kind, value in odd:
            try:
                write_gguf(gguf_path, **{key: (kind, value)})
            except (ValueError, TypeError, struct.error):
                continue  # the writer itself refuses it
            converts_or_refuses(gguf_path)


def test_flipped_and_missing_bytes_of_a_gguf_file(gguf_path: Path) -> None:
    print(f"seed {SEED}")
    data, chance = gguf_path.read_bytes(), random.Random(SEED)
    end = data.index(b"output_norm") + 900
    cuts = [data[:length] for length in range(0, len(data), 2003)]
    for bent in (*cuts, *(flipped(data, chance, end) for _ in range(200))):
        gguf_path.write_bytes(bent)
        converts_or_refuses(gguf_path)


def test_gguf_counts_and_nesting_without_end(gguf_path: Path) -> None:
    preamble = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"k"
    nested = struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 5000 + struct.pack("<IQ", 4, 0)
    counts = b"GGUF" + struct.pack("<IQQ", 3, 2**63, 2**63) + bytes(100)
    for bent in (preamble + nested, counts, preamble + struct.pack("<IIQ", 9, 4, 2**62)):
        gguf_path.write_bytes(bent)
        with pytest.raises(CheckpointError):
            convert(ConvertRequest(gguf_path, gguf_path.parent / "out"))


@pytest.mark.parametrize("pattern", ["a{i}b{i}", "(", "{", "{0}"])
def test_weight_map_with_odd_patterns(model: Path, pattern: str) -> None:
    path = model.parent / "map.json"
    path.write_text(json.dumps({"tensors": {pattern: "model.norm.weight"}}))
    with pytest.raises((CheckpointError, ConfigError)):
        convert(ConvertRequest(model, model.parent / "out", weight_map=path))


@pytest.mark.parametrize("text", ["[" * 100_000, '"\\ud800"', '{"\\udfff": 1}', "{", "9" * 5000])
def test_json_that_goes_nowhere(text: str) -> None:
    with pytest.raises(ValueError):
        parse_json(text)
    assert parse_json(b'{"pair": "\\ud83d\\ude00"}') == {"pair": "\U0001f600"}


@pytest.mark.parametrize("arguments", [["--output_dir", ""], ["--output-dir="]])
def test_flag_that_names_no_path(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(app, ["convert", "--model_dir", "m", *arguments]) == EXIT_USAGE
    assert "names no path" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["convert", "inspect", "deploy"])
def test_path_that_the_system_refuses(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    flag = "--model_dir" if verb == "convert" else "--engine_dir"
    more = ["--model_repository", "r", "--name", "n"] if verb == "deploy" else []
    more += ["--output_dir", "o"] if verb == "convert" else []
    assert run_app(app, [verb, flag, "a" * 5000, *more]) == EXIT_FAILED
    printed = capsys.readouterr().err
    assert "File name too long" in printed and "Traceback" not in printed


def test_output_that_is_a_circle_of_links(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    circle = model.with_name("circle")
    circle.symlink_to("circle")
    arguments = ["convert", "--model_dir", str(model), "--output_dir", str(circle / "out")]
    assert run_app(app, arguments) == EXIT_FAILED
    assert "Too many levels of symbolic links" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--max_seq_len", "--max_batch_size", "--max_num_tokens"])
def test_limits_beyond_any_machine(
    model: Path, flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    convert(ConvertRequest(model, model.parent / "checkpoint"))
    arguments = ["build", "--checkpoint_dir", str(model.parent / "checkpoint")]
    arguments += ["--output_dir", str(model.parent / "out"), flag, "9" * 23]
    assert run_app(app, arguments) == EXIT_USAGE
    assert "must be from 1 to" in capsys.readouterr().err
