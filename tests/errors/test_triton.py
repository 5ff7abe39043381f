"""Mistakes around Triton: deployments, servers and requests that cannot be."""

from __future__ import annotations

import importlib.util
import math
import shutil
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.triton.event_stream import stream_generate
from tests.unit.triton import fake_pb_utils  # installs the stub's module before it is imported
from tidemill.base.errors import ConfigError, InvalidRequestError, ServerError
from tidemill.frontends.triton import installation
from tidemill.frontends.triton.bls_model import latest_version
from tidemill.frontends.triton.deploy import DeployRequest, deploy
from tidemill.frontends.triton.door_config import DoorConfig
from tidemill.frontends.triton.front_door import DoorAddress, FrontDoor
from tidemill.frontends.triton.local_model import find_tokenizer_dir
from tidemill.frontends.triton.model_parameters import (
    ModelParameters,
    ModelPlace,
    find_engine_dir,
    read_session_config,
)
from tidemill.frontends.triton.request_inputs import RequestInputs, as_text
from tidemill.frontends.triton.sampling_inputs import TEXT_NAMES, read_options
from tidemill.frontends.triton.serve_request import (
    ServeRequest,
    WatchdogConfig,
    check_repository,
    check_server_flags,
)
from tidemill.frontends.triton.server import TritonServer
from tidemill.frontends.triton.staged_repository import stage_repository
from tidemill.frontends.triton.template import fill_template, parse_substitutions
from tidemill.frontends.triton.tokens_model import unpack_prompts
from tidemill.frontends.triton.unsupported_inputs import ARRAYS, NEUTRAL_NUMBERS, TEXTS
from tidemill.frontends.triton.word_lists import unpack_words


@pytest.fixture
def request_for(tmp_path: Path) -> DeployRequest:
    engine = tmp_path / "engine"
    engine.mkdir()
    for name in ("config.json", "rank0.engine", "tokenizer.json"):
        (engine / name).write_text("{}")
    return DeployRequest(engine, tmp_path / "repository", "llama")


def expect_four_parts(error: Exception) -> None:
    text = str(error)
    assert "where: " in text and "expected: " in text and "got: " in text and "try: " in text


def test_deploy_of_a_directory_without_engine_names_all_that_is_missing(
    request_for: DeployRequest,
) -> None:
    for name in ("rank0.engine", "tokenizer.json"):
        (request_for.engine_dir / name).unlink()
    with pytest.raises(ConfigError) as caught:
        deploy(request_for)
    expect_four_parts(caught.value)
    assert caught.value.got == "no rank0.engine, no tokenizer.json"
    assert not request_for.model_repository.exists()


def test_deploy_of_a_directory_that_does_not_exist(request_for: DeployRequest) -> None:
    shutil.rmtree(request_for.engine_dir)
    with pytest.raises(ConfigError, match=r"no config.json, no rank0.engine") as caught:
        deploy(request_for)
    expect_four_parts(caught.value)


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"pretrained_config": 5}', '{"build_config": {"max_batch_size": null}}',
     '{"pretrained_config": {"num_hidden_layers": 10000000000}}'],
)  # fmt: skip
def test_deploy_of_an_engine_with_a_broken_config(request_for: DeployRequest, text: str) -> None:
    (request_for.engine_dir / "config.json").write_text(text)
    with pytest.raises(ConfigError) as caught:
        deploy(request_for)
    expect_four_parts(caught.value)


def test_deploy_under_a_taken_name_keeps_the_old_model(request_for: DeployRequest) -> None:
    model = deploy(request_for).model_dir / "1" / "model.py"
    before = model.read_text()
    with pytest.raises(ConfigError, match="already has a model") as caught:
        deploy(replace(request_for, style="tokens"))
    expect_four_parts(caught.value)
    assert model.read_text() == before


@pytest.mark.parametrize("size", [-1, 1 << 31])
def test_deploy_lists_every_bad_setting_at_once(request_for: DeployRequest, size: int) -> None:
    bad = replace(request_for, style="ensembl", link="soft", name="a/b", max_batch_size=size)
    with pytest.raises(ConfigError) as caught:
        deploy(bad)
    expect_four_parts(caught.value)
    assert caught.value.where == "style, link, name, max_batch_size"


def test_tokens_style_has_no_batch_dimension(request_for: DeployRequest) -> None:
    with pytest.raises(ConfigError, match="packed end to end"):
        deploy(replace(request_for, style="tokens", max_batch_size=4))


def test_port_in_use_names_the_flag_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(ServerError, match=f"--grpc-port {port}: in use") as caught:
            TritonServer(ServeRequest(tmp_path, http_port=0, grpc_port=port, metrics_port=0))
    expect_four_parts(caught.value)


def test_address_of_another_machine_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(ServerError, match="cannot be opened"):
        TritonServer(ServeRequest(tmp_path, 0, 0, 0, host="203.0.113.7"))


@pytest.mark.parametrize("is_there", [True, False])
def test_repository_without_a_model(tmp_path: Path, is_there: bool) -> None:
    with pytest.raises(ServerError) as caught:
        check_repository(tmp_path if is_there else tmp_path / "none")
    expect_four_parts(caught.value)


@pytest.mark.parametrize("watchdog", [WatchdogConfig(math.nan), WatchdogConfig(1.0, math.nan)])
def test_watchdog_that_never_looks(tmp_path: Path, watchdog: WatchdogConfig) -> None:
    with pytest.raises(ConfigError, match="--probe_period") as caught:
        ServeRequest(tmp_path, watchdog=watchdog).check()
    expect_four_parts(caught.value)


def test_one_port_for_two_listeners(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--http-port, --metrics-port"):
        ServeRequest(tmp_path, http_port=8000, metrics_port=8000).check()
    with pytest.raises(ServerError, match="no model to serve"):
        ServeRequest(tmp_path, http_port=0, grpc_port=0).check()


def test_tritonserver_flags_that_clash_with_our_own() -> None:
    with pytest.raises(ConfigError) as caught:
        check_server_flags(("--log-verbose=1", "--http-port=1", "--exit-timeout-secs"))
    expect_four_parts(caught.value)
    assert caught.value.got == "--http-port=1, --exit-timeout-secs"


def test_model_that_does_not_load_ends_the_start_with_the_servers_own_words(
    tmp_path: Path,
) -> None:
    (tmp_path / "m" / "1").mkdir(parents=True)
    (tmp_path / "m" / "config.pbtxt").write_text('name: "m" backend: "nonesuch"')
    lines: list[str] = []
    with (
        pytest.raises(ServerError, match="nonesuch") as caught,
        TritonServer(ServeRequest(tmp_path, 0, 0, 0), lines.append),
    ):
        pass
    expect_four_parts(caught.value)


@pytest.mark.parametrize(
    ("config", "part"),
    [
        ('platform: "tensorrt_llm" max_batch_size: many', "1:"),
        ('platform: "tensorrt_llm" max_batch_size: 8', "max_batch_size 0, not 8"),
        ('platform: "tensorrt_llm"', "missing: input input_ids, input input_lengths, output"),
    ],
)
def test_users_config_that_cannot_be_served_is_refused_before_the_server_starts(
    tmp_path: Path, config: str, part: str
) -> None:
    (tmp_path / "models" / "m").mkdir(parents=True)
    (tmp_path / "models" / "m" / "config.pbtxt").write_text(config)
    with pytest.raises(ServerError) as caught:
        stage_repository(tmp_path / "models", tmp_path / "staged", print)
    expect_four_parts(caught.value)
    assert part in caught.value.got


@pytest.mark.parametrize("value", ["many", "-1", "1.5"])
def test_parameter_of_config_pbtxt_that_is_no_number(value: str) -> None:
    with pytest.raises(ConfigError, match="num_threads") as caught:
        read_session_config(ModelParameters({"num_threads": value}))
    expect_four_parts(caught.value)


def test_no_tritonserver_anywhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ServerError, match="no tritonserver") as caught:
        installation.find_installation(search_path=str(tmp_path))
    expect_four_parts(caught.value)


def test_numpy_two_is_refused_before_the_stub_dies_of_it() -> None:
    installation.check_numpy("1.26.4")
    with pytest.raises(ServerError, match=r"numpy 2\.1\.0") as caught:
        installation.check_numpy("2.1.0")
    expect_four_parts(caught.value)


def test_python_without_shared_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Path, "is_file", lambda _: False)
    with pytest.raises(ServerError, match="no shared library") as caught:
        installation.find_libpython_dir()
    expect_four_parts(caught.value)


def test_wheel_without_a_stub_for_this_python(tmp_path: Path) -> None:
    stubs = tmp_path / "tritonserver" / "python_backend_stubs"
    (stubs / "3.8").mkdir(parents=True)
    with pytest.raises(ServerError, match="no stub for this Python") as caught:
        installation._wheel_installation(tmp_path)
    expect_four_parts(caught.value)


@pytest.mark.parametrize("name", sorted(NEUTRAL_NUMBERS))
def test_numbers_of_missing_features_are_refused_by_name(name: str) -> None:
    inputs = RequestInputs({name: np.array([[2.5]])}, num_rows=1)
    with pytest.raises(InvalidRequestError, match=f"where: {name}") as caught:
        read_options(inputs, TEXT_NAMES)
    expect_four_parts(caught.value)


@pytest.mark.parametrize("name", sorted(TEXTS))
def test_texts_of_missing_features_are_refused_by_name(name: str) -> None:
    inputs = RequestInputs({name: fake_pb_utils.text_array("x")}, num_rows=1)
    with pytest.raises(InvalidRequestError, match=f"where: {name}") as caught:
        read_options(inputs, TEXT_NAMES)
    expect_four_parts(caught.value)


@pytest.mark.parametrize("name", sorted(ARRAYS))
def test_tensors_of_missing_features_are_refused_by_name(name: str) -> None:
    inputs = RequestInputs({name: np.zeros((1, 2))}, num_rows=1)
    with pytest.raises(InvalidRequestError, match=f"where: {name}") as caught:
        read_options(inputs, TEXT_NAMES)
    expect_four_parts(caught.value)


def test_unknown_batching_type_has_upstreams_words() -> None:
    with pytest.raises(ConfigError, match="Must be v1/inflight_batching/inflight_fused_batching"):
        read_session_config(ModelParameters({"gpt_model_type": "v2"}))


def test_unfilled_placeholder_of_the_engine_is_named(tmp_path: Path) -> None:
    parameters = ModelParameters({"gpt_model_path": "${engine_dir}"})
    with pytest.raises(ConfigError, match=r"gpt_model_path: \$\{engine_dir\}") as caught:
        find_engine_dir(ModelPlace(tmp_path / "model", "1"), parameters)
    expect_four_parts(caught.value)


def test_unfilled_placeholder_of_the_tokenizer_is_named(tmp_path: Path) -> None:
    parameters = ModelParameters({"tokenizer_dir": "${tokenizer_dir}"})
    with pytest.raises(ConfigError, match=r"tokenizer_dir: \$\{tokenizer_dir\}") as caught:
        find_tokenizer_dir(ModelPlace(tmp_path / "model", "1"), parameters)
    expect_four_parts(caught.value)


def test_bls_model_without_the_model_it_calls(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not there") as caught:
        latest_version(tmp_path / "tensorrt_llm")
    expect_four_parts(caught.value)


@pytest.mark.parametrize("words", [[[[1, 2]]], [[[1, 2], [2, 1]]], [[[1, 2], [3, -1]]]], ids=str)
def test_word_list_that_cannot_be_cut(words: object) -> None:
    with pytest.raises(InvalidRequestError, match="stop_words_list") as caught:
        unpack_words("stop_words_list", np.array(words), num_rows=1)
    expect_four_parts(caught.value)


def test_two_names_of_the_seed_that_disagree() -> None:
    arrays = {"seed": np.array([[1]]), "random_seed": np.array([[2]])}
    with pytest.raises(InvalidRequestError, match="seed, random_seed"):
        read_options(RequestInputs(arrays, num_rows=1), TEXT_NAMES)


def test_prompt_that_is_not_utf8() -> None:
    with pytest.raises(InvalidRequestError, match="byte 2 of 3"):
        as_text(b"ab\xff")


@pytest.mark.parametrize("lengths", [[], [5, 1], [0, 5], [6, -1], [4]])
def test_packed_lengths_that_do_not_add_up(lengths: list[int]) -> None:
    with pytest.raises(InvalidRequestError, match="do not add up") as caught:
        unpack_prompts(np.arange(5), np.array(lengths, dtype=np.int32))
    expect_four_parts(caught.value)


def test_serve_reports_a_missing_repository_on_the_command_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tidemill", "serve", "--model_repository"]
    done = subprocess.run(
        [*command, str(tmp_path / "none")], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "there is no model to serve" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("text", [None, "", " \n", "two words", "caf\u00e9"])
def test_api_key_file_without_a_usable_key(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "keys"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="API keys cannot be used") as caught:
        DoorConfig(api_key_file=path).check()
    expect_four_parts(caught.value)


def test_certificate_without_its_key_and_files_that_are_none(tmp_path: Path) -> None:
    cert = tmp_path / "cert.pem"
    cert.write_text("not a certificate")
    for config in (
        DoorConfig(tls_cert=cert),
        DoorConfig(tls_key=cert),
        DoorConfig(tls_cert=cert, tls_key=cert),
        DoorConfig(tls_cert=tmp_path / "none", tls_key=cert),
    ):
        with pytest.raises(ConfigError, match="certificate cannot be used") as caught:
            config.check()
        expect_four_parts(caught.value)


def test_keys_without_the_door_that_checks_them(tmp_path: Path) -> None:
    flags = ["--model_repository", str(tmp_path), "--no-front-door", "--api_key_file", "keys"]
    result = subprocess.run(
        [sys.executable, "-m", "tidemill", "serve", *flags], capture_output=True, text=True
    )
    assert result.returncode != 0
    assert "belong to the front door" in result.stderr and "try: " in result.stderr


def test_front_door_on_a_port_in_use() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        address = DoorAddress("127.0.0.1", holder.getsockname()[1])
        door = FrontDoor(address, "http://127.0.0.1:1", DoorConfig(), lambda: True, 1.0)
        with pytest.raises(ServerError, match="door cannot be opened") as caught, door:
            pass
    expect_four_parts(caught.value)


def test_answer_that_breaks_off_is_an_error_for_our_own_client() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        def answer_half() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
                connection.sendall(head + b'b\r\ndata: {"a":\r\n')

        thread = threading.Thread(target=answer_half)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(ServerError, match="went away") as caught:
            list(stream_generate(url, "m", {}))
        thread.join()
    expect_four_parts(caught.value)


def test_template_without_the_placeholder(tmp_path: Path) -> None:
    path = tmp_path / "config.pbtxt"
    path.write_text("max_batch_size: ${triton_max_batch_size}")
    with pytest.raises(ConfigError, match="engine_dri") as caught:
        fill_template(path, {"engine_dri": "/e"})
    expect_four_parts(caught.value)


def test_substitution_without_a_colon() -> None:
    with pytest.raises(ConfigError, match="cannot be read") as caught:
        parse_substitutions("engine_dir")
    expect_four_parts(caught.value)
