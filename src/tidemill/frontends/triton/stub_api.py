"""Typed access to `triton_python_backend_utils`, which exists only inside of Triton's stub.

The only module that touches it; tests put a fake in its place. Everything else in this room deals
with the protocols below and with NumPy arrays.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils

from tidemill.base.errors import CancelledError, QueueFullError, RequestError, SessionError

Array = npt.NDArray[Any]


class Tensor(Protocol):
    """A named array of a request."""

    def name(self) -> str: ...

    def as_numpy(self) -> Array: ...


class Response(Protocol):
    """A response on its way; opaque."""


class ResponseSender(Protocol):
    """The way back to one client, usable from any thread until the final flag was sent."""

    def send(self, response: Response | None = None, flags: int = 0) -> None: ...

    def is_cancelled(self) -> bool: ...


class InferenceRequest(Protocol):
    """One request as Triton hands it over."""

    def request_id(self) -> str: ...

    def inputs(self) -> Sequence[Tensor]: ...

    def requested_output_names(self) -> Sequence[str]: ...

    def parameters(self) -> str: ...

    def get_response_sender(self) -> ResponseSender: ...


class Metric(Protocol):
    """One metric of a family; a kind refuses the calls of the others."""

    def set(self, value: float) -> None: ...

    def increment(self, value: float) -> None: ...

    def observe(self, value: float) -> None: ...


class MetricFamily(Protocol):
    """A family of metrics; several models may have the same one, told apart by labels."""

    def Metric(self, **settings: Any) -> Metric: ...  # the name is Triton's


FINAL: int = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


def make_metric_family(name: str, description: str, kind: str) -> MetricFamily:
    """Return a family of a kind: "gauge", "counter" or "histogram".

    Triton raises its own exception where metrics are switched off.
    """
    family_class = pb_utils.MetricFamily
    codes = {
        "gauge": family_class.GAUGE,
        "counter": family_class.COUNTER,
        "histogram": family_class.HISTOGRAM,
    }
    family: MetricFamily = family_class(name=name, description=description, kind=codes[kind])
    _keep_for_ever(family)
    return family


def make_metric(
    family: MetricFamily, labels: Mapping[str, str], buckets: Sequence[float] = ()
) -> Metric:
    """Return the metric of a family with these labels; the server keeps it when the stub ends."""
    settings = {"labels": dict(labels), **({"buckets": list(buckets)} if buckets else {})}
    metric = family.Metric(**settings)
    _keep_for_ever(metric)
    return metric


def _keep_for_ever(thing: object) -> None:
    """Keep an object from being deleted, even when the interpreter ends.

    Triton 2.51 counts a metric's users for each stub alone. A model that is loaded again begins
    before its old stub has ended, with the same labels and so with the same metric: what the old
    one deletes, the new one would write to, until the server's memory is broken.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def log_info(text: str) -> None:
    """Write a line to the server's log, at its level of information."""
    pb_utils.Logger.log_info(text)


def make_response(outputs: Mapping[str, Array]) -> Response:
    """Return a response with these tensors; those that the client did not ask for are dropped."""
    tensors = [pb_utils.Tensor(name, array) for name, array in outputs.items()]
    response: Response = pb_utils.InferenceResponse(output_tensors=tensors)
    return response


def make_error(error: Exception) -> Response:
    """Return a response that carries an error's message and the code of its kind."""
    code = _error_code(error)
    response: Response = pb_utils.InferenceResponse(
        output_tensors=[], error=pb_utils.TritonError(str(error), code)
    )
    return response


def _error_code(error: Exception) -> int:
    codes = pb_utils.TritonError
    by_kind = (
        (QueueFullError, codes.UNAVAILABLE),
        (CancelledError, codes.CANCELLED),
        (RequestError, codes.INVALID_ARG),
        (SessionError, codes.UNAVAILABLE),
    )
    code: int = next((code for kind, code in by_kind if isinstance(error, kind)), codes.INTERNAL)
    return code


def strings(*texts: str) -> Array:
    """Return texts as a one-dimensional string tensor, which clients index once."""
    return np.array([text.encode("utf-8") for text in texts], dtype=np.object_)
