"""The process that the serve verb becomes: what it is told, and what it does without."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tidemill.frontends.cli.serving import request_from
from tidemill.frontends.cli.shell import as_plain
from tidemill.frontends.triton.door_config import DoorConfig
from tidemill.frontends.triton.serve_request import ServeRequest, WatchdogConfig

SECURE = ServeRequest(
    Path("models"),
    http_port=1,
    host="::1",
    server_flags=("--log-verbose=1", "--x"),
    watchdog=WatchdogConfig(0.5, 2.0, 0),
    front_door=DoorConfig(5, 6, Path("keys"), Path("cert"), Path("key")),
    settings={"num_threads": "2"},
)
BARE = ServeRequest(Path("a b\udcff"), watchdog=None)


@pytest.mark.parametrize("request_", [SECURE, BARE])
def test_request_is_what_it_was_after_its_way_through_json(request_: ServeRequest) -> None:
    assert request_from(json.loads(json.dumps(as_plain(request_)))) == request_


def test_plain_http_is_served_without_the_parser_and_without_encryption(tmp_path: Path) -> None:
    request = as_plain(ServeRequest(tmp_path, front_door=DoorConfig()))
    code = (
        "import sys; from tidemill.frontends.cli import serving\n"
        "assert serving.main() == 1\n"  # the repository is empty
        "import tidemill.frontends.triton.front_door\n"
        "unused = {'typer', 'click', 'rich', '_ssl', '_hashlib'} & set(sys.modules)\n"
        "assert not {name for name in unused if sys.modules[name]}, unused"
    )
    command = [sys.executable, "-c", code, json.dumps(request)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "there is no model to serve" in done.stderr, done.stderr


def test_files_in_the_users_directory_are_not_imported(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    for module in ("json", "aiohttp"):
        (tmp_path / f"{module}.py").write_text("raise SystemExit(77)")
    tidemill = str(Path(sys.executable).with_name("tidemill"))
    command = [tidemill, "serve", "--model_repository", "models"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "there is no model to serve" in done.stderr, done.stderr
