"""Windows that a config.pbtxt asks for, against those of the engine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tidemill.base.errors import ConfigError
from tidemill.frontends.triton.attention_windows import check_windows
from tidemill.frontends.triton.model_parameters import ModelParameters


def check(directory: Path, own: list[int] | None, **parameters: str) -> None:
    pretrained = {"num_hidden_layers": 3}
    if own:
        pretrained["runtime_defaults"] = {"max_attention_window": own}  # type: ignore[assignment]
    config = {"pretrained_config": pretrained, "build_config": {"max_seq_len": 100}}
    (directory / "config.json").write_text(json.dumps(config))
    check_windows(ModelParameters(parameters), directory)


@pytest.mark.parametrize(
    ("own", "asked"),
    [(None, "100"), (None, "4096"), ([20], "20"), ([20], "20, 20,20"), ([20, 4096], "20;100")],
)
def test_what_the_engine_has_is_accepted(tmp_path: Path, own: list[int] | None, asked: str) -> None:
    check(tmp_path, own, max_attention_window_size=asked)
    check(tmp_path, own, sink_token_length="0")
    check(tmp_path, own, max_attention_window_size="${max_attention_window_size}")


@pytest.mark.parametrize(
    ("own", "asked"), [(None, "99"), ([20], "21"), ([20], "100"), ([20], "20,100"), ([20], "wide")]
)
def test_window_that_the_engine_does_not_have(
    tmp_path: Path, own: list[int] | None, asked: str
) -> None:
    with pytest.raises(ConfigError, match="max_attention_window_size"):
        check(tmp_path, own, max_attention_window_size=asked)


def test_sink_tokens(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="sink_token_length"):
        check(tmp_path, None, sink_token_length="4")
