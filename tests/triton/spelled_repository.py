"""Deployments of an engine without a model, for tests of the transport with the real server.

Its answer to `... >hello` is `hello`, and to a prompt without `>` x for ever, so that a test says
what it expects. The models are the product's own; only the host's program is another.
"""

from __future__ import annotations

from pathlib import Path

from tests.unit.host.fake_engine import write_tokenizer
from tidemill.frontends.triton.deploy import DeployRequest, deploy
from tidemill.frontends.triton.deploy_request import CLASSIC

STREAMING, UNARY = "spelled", "spelled_unary"
PACKED, PACKED_STREAMING = "packed", "packed_streaming"
LLMAPI, LLMAPI_UNARY = "llmapi", "llmapi_unary"
# Prefixes of the classic five: upstream's own names, and a second set that answers once.
CLASSIC_UNARY = "unary"

MODEL_PY = '''"""A model of the product, on the host of an engine that spells."""

from pathlib import Path

from tests.triton.spelled_host import connect_spelled
from tidemill.frontends.triton.{module} import {model}
from tidemill.host.client import HostClient
from tidemill.host.config import SessionConfig


class TritonPythonModel({model}):
    def connect(self, engine_dir: Path, session: SessionConfig) -> HostClient:
        return connect_spelled(engine_dir, session)
'''

HOSTED = {
    "text_model": "TextModel",
    "tokens_model": "TokensModel",
    "tensorrt_llm_model": "TensorrtLlmModel",
    "bls_model": "BlsModel",
    "llmapi_model": "LlmapiModel",
}


def write_spelled_engine(directory: Path) -> Path:
    """Write an engine directory that passes for one, and return it."""
    directory.mkdir()
    write_tokenizer(directory)
    (directory / "config.json").write_text('{"build_config": {"max_batch_size": 4}}')
    (directory / "rank0.engine").write_text("an engine that spells")
    return directory


def deploy_spelled(engine: Path, repository: Path) -> None:
    """Deploy the single-model styles, each decoupled and not, all on one host."""
    for name, style, is_decoupled in (
        (STREAMING, "text", True),
        (UNARY, "text", False),
        (PACKED, "tokens", False),
        (PACKED_STREAMING, "tokens", True),
    ):
        _deploy(DeployRequest(engine, repository, name, style, is_decoupled, link="symbolic"))


def deploy_spelled_text(engine: Path, repository: Path) -> None:
    """Deploy the text model alone."""
    _deploy(DeployRequest(engine, repository, STREAMING, link="symbolic"))


def deploy_spelled_classics(engine: Path, repository: Path) -> None:
    """Deploy the five models and the llmapi model, each decoupled and not, on the same host."""
    for name, style, is_decoupled in (
        ("", CLASSIC, True),
        (CLASSIC_UNARY, CLASSIC, False),
        (LLMAPI, "llmapi", True),
        (LLMAPI_UNARY, "llmapi", False),
    ):
        _deploy(DeployRequest(engine, repository, name, style, is_decoupled, link="symbolic"))


def _deploy(request: DeployRequest) -> None:
    for model_dir in deploy(request).model_dirs:
        model_py = model_dir / "1" / "model.py"
        for module, model in HOSTED.items():
            if model_py.exists() and f"triton.{module} import" in model_py.read_text():
                model_py.write_text(MODEL_PY.format(module=module, model=model))
                break
