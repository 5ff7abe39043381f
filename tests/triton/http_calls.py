"""Calls of Triton's HTTP interface, on the standard library, as any client would make them."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

TIMEOUT_S = 30.0


def call(url: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
    """Get, or post a body as JSON; return the status and the answer, parsed where it is JSON."""
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data), timeout=TIMEOUT_S) as answer:
            status, text = answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            status, text = error.code, error.read()
    return status, json.loads(text) if text.startswith(b"{") else text.decode()


def tensor(name: str, datatype: str, data: list[Any], shape: list[int]) -> dict[str, Any]:
    """Return one input of the KServe protocol."""
    return {"name": name, "datatype": datatype, "shape": shape, "data": data}


def infer_body(prompt: str, max_tokens: int) -> dict[str, Any]:
    """Return a KServe request for one prompt."""
    inputs = [
        tensor("text_input", "BYTES", [prompt], [1, 1]),
        tensor("max_tokens", "INT32", [max_tokens], [1, 1]),
    ]
    return {"inputs": inputs}
