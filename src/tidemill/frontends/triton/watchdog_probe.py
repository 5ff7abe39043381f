"""Asks the models of a server for a sign of life: the real inference that health endpoints lack.

In: the server's address and its stubs. Out: a `Verdict`. Only models of this house are asked, one
marked request each, through Triton's own HTTP interface; what a user's own model would make of such
a request is not ours to know.
"""

from __future__ import annotations

import http.client
import json
import math
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from tidemill.frontends.triton.probe_mark import PROBE_MARK
from tidemill.frontends.triton.process_tree import Stub

OUR_MODULE = b"tidemill.frontends.triton"
LIVE_TIMEOUT_S = 10.0
DATA_TYPE_TO_VALUE: Mapping[str, Any] = {"TYPE_STRING": "", "TYPE_BOOL": False}
FLOAT_PREFIXES = ("TYPE_FP", "TYPE_BF")


class Health(Enum):
    """What a probe found: SICK mends itself or cannot be mended from here, DEAD is healed."""

    WELL = "well"
    SICK = "sick"
    DEAD = "dead"


@dataclass(frozen=True)
class Verdict:
    """What a round of probes found first that is not well, and in which words."""

    health: Health
    reason: str = ""


class ProbeRound:
    """One probe of each model, on a thread of its own; `verdict` is None until it is known."""

    def __init__(self, address: str, stubs: Iterable[Stub], timeout_s: float) -> None:
        self.verdict: Verdict | None = None
        models = sorted({stub.model for stub in stubs if is_ours(stub.model_py)})
        self._thread = threading.Thread(
            target=self._run, args=(address, models, timeout_s), name="probe", daemon=True
        )
        self._thread.start()

    def _run(self, address: str, models: list[str], timeout_s: float) -> None:
        try:
            self.verdict = ask_all(address, models, timeout_s)
        except Exception as error:  # without a verdict there would be no further round
            self.verdict = Verdict(Health.SICK, f"a probe failed: {error!r}")


def ask_all(address: str, models: Iterable[str], timeout_s: float) -> Verdict:
    """Ask the server, then each model, until one is not well."""
    worst = ask_server(address)
    for model in models:
        if worst.health is not Health.WELL:
            break
        worst = ask_model(address, model, timeout_s)
    return worst


def is_ours(model_py: Path) -> bool:
    """Say whether a model is one of this house, which knows the mark."""
    try:
        return OUR_MODULE in model_py.read_bytes()
    except OSError:
        return False


def ask_server(address: str) -> Verdict:
    """Ask the server whether it lives, without any model."""
    try:
        status, text = _call(address, "/v2/health/live", None, LIVE_TIMEOUT_S)
    except (OSError, http.client.HTTPException) as error:
        return Verdict(Health.DEAD, f"tritonserver does not answer: {error!r}")
    return Verdict(Health.WELL) if status == 200 else Verdict(Health.SICK, f"{status} {text}")


def ask_model(address: str, model: str, timeout_s: float) -> Verdict:
    """Ask one model for a sign of life; one that is not loaded has nothing to prove."""
    try:
        status, text = _call(address, f"/v2/models/{model}/config", None, LIVE_TIMEOUT_S)
        if status != 200:
            return Verdict(Health.WELL)
        body = probe_body(json.loads(text))
        status, text = _call(address, f"/v2/models/{model}/generate", body, timeout_s)
    except TimeoutError:
        return Verdict(Health.DEAD, f"model {model} gave no sign of life within {timeout_s:g} s")
    except (OSError, http.client.HTTPException) as error:
        return Verdict(Health.DEAD, f"tritonserver does not answer: {error!r}")
    if status == 200:
        return Verdict(Health.WELL)
    is_dead = "Stub process" in text and "not healthy" in text
    return Verdict(Health.DEAD if is_dead else Health.SICK, f"model {model}: {text.strip()}")


def probe_body(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a marked request with the least that Triton accepts for a model of this config."""
    body: dict[str, Any] = {PROBE_MARK: True}
    for tensor in config.get("input", ()):
        if not tensor.get("optional", False):
            body[tensor["name"]] = _fill(tensor["data_type"], tensor["dims"])
    return body


def _fill(data_type: str, dims: Iterable[int | str]) -> Any:
    value = DATA_TYPE_TO_VALUE.get(data_type, 1.0 if data_type.startswith(FLOAT_PREFIXES) else 1)
    num_elements = math.prod(max(1, int(dim)) for dim in dims)
    return value if num_elements == 1 else [value] * num_elements


def _call(
    address: str, path: str, body: Mapping[str, Any] | None, timeout_s: float
) -> tuple[int, str]:
    connection = http.client.HTTPConnection(address, timeout=timeout_s)
    try:
        method = "GET" if body is None else "POST"
        connection.request(method, path, None if body is None else json.dumps(body))
        response = connection.getresponse()
        return response.status, response.read().decode("utf-8", "replace")
    finally:
        connection.close()
