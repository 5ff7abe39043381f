"""Puts a fake of the stub's module in place before tests import theirs, and loads models on it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.triton import fake_pb_utils
from tests.unit.triton.served_models import FakeClient, Load
from tidemill.frontends.triton.model import ServedModel
from tidemill.frontends.triton.text_model import TextModel

__all__ = ["fake_pb_utils"]


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> FakeClient:
    client = FakeClient()
    monkeypatch.setattr(ServedModel, "connect", lambda *_: client, raising=True)
    return client


@pytest.fixture
def load(client: FakeClient, tmp_path: Path) -> Iterator[Load]:
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "rank0.engine").touch()
    loaded: list[ServedModel] = []

    def make(
        kind: type[ServedModel] = TextModel, decoupled: bool = True, **config: Any
    ) -> ServedModel:
        config = {"max_batch_size": 8, **config}
        config["model_transaction_policy"] = {"decoupled": decoupled}
        model = kind()
        model.initialize(
            {
                "model_config": json.dumps(config),
                "model_repository": str(tmp_path),
                "model_version": "1",
                "model_name": "served",
            }
        )
        loaded.append(model)
        return model

    yield make
    for model in loaded:
        model.finalize()
    assert client.is_closed == bool(loaded)
