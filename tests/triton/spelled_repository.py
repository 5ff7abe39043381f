"""Deployments of an engine without a model, for tests of the transport with the real server.

Its answer to `... >hello` is `hello`, and to a prompt without `>` x for ever, so that a test says
what it expects. The models are the product's own; only the host's program is another.
"""

from __future__ import annotations

from pathlib import Path

from tests.unit.host.fake_engine import write_tokenizer
from tidemill.frontends.triton.deploy import DeployRequest, deploy

STREAMING, UNARY = "spelled", "spelled_unary"
PACKED, PACKED_STREAMING = "packed", "packed_streaming"

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


def write_spelled_engine(directory: Path) -> Path:
    """Write an engine directory that passes for one, and return it."""
    directory.mkdir()
    write_tokenizer(directory)
    (directory / "config.json").write_text('{"build_config": {"max_batch_size": 4}}')
    (directory / "rank0.engine").write_text("an engine that spells")
    return directory


def deploy_spelled(engine: Path, repository: Path) -> None:
    """Deploy both styles, each decoupled and not, all on one host."""
    for name, style, is_decoupled in (
        (STREAMING, "text", True),
        (UNARY, "text", False),
        (PACKED, "tokens", False),
        (PACKED_STREAMING, "tokens", True),
    ):
        report = deploy(
            DeployRequest(engine, repository, name, style, is_decoupled, link="symbolic")
        )
        module, model = {
            "text": ("text_model", "TextModel"),
            "tokens": ("tokens_model", "TokensModel"),
        }[style]
        text = MODEL_PY.format(module=module, model=model)
        (report.model_dir / "1" / "model.py").write_text(text)
