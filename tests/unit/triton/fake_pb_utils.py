"""Stands in for `triton_python_backend_utils`, which exists only inside of Triton's stub.

Importing this module installs it under that name. What is sent is kept in lists, and sending after
the final flag fails as it does in the stub.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1

Array = npt.NDArray[Any]


class TritonError(Exception):
    """An error with a code, as in the stub."""

    UNKNOWN, INTERNAL, NOT_FOUND, INVALID_ARG, UNAVAILABLE, UNSUPPORTED, CANCELLED = range(7)

    def __init__(self, message: str, code: int = INTERNAL) -> None:
        super().__init__(message)
        self.code = code


class Logger:
    """Keeps what models wrote to the server's log."""

    lines: ClassVar[list[str]] = []

    @classmethod
    def log_info(cls, text: str) -> None:
        cls.lines.append(text)


class Tensor:
    """A named array."""

    def __init__(self, name: str, array: Array) -> None:
        self._name, self._array = name, array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> Array:
        return self._array


class InferenceResponse:
    """Tensors by name, or an error."""

    def __init__(self, output_tensors: list[Tensor], error: TritonError | None = None) -> None:
        self.outputs = {tensor.name(): tensor.as_numpy() for tensor in output_tensors}
        self.error = error

    def text(self) -> str:
        return str(self.outputs["text_output"][0].decode("utf-8"))


@dataclass
class Sender:
    """Keeps what is sent, with its flags."""

    sent: list[tuple[InferenceResponse, int]] = field(default_factory=list)
    cancelled: bool = False

    def send(self, response: object = None, flags: int = 0) -> None:
        assert not self.is_complete, "the final flag was sent before"
        assert isinstance(response, InferenceResponse)
        self.sent.append((response, flags))

    def is_cancelled(self) -> bool:
        assert not self.is_complete, "tritonserver dies of being asked after the final flag"
        return self.cancelled

    @property
    def is_complete(self) -> bool:
        return bool(self.sent) and self.sent[-1][1] == TRITONSERVER_RESPONSE_COMPLETE_FINAL

    @property
    def responses(self) -> list[InferenceResponse]:
        return [response for response, _ in self.sent]

    @property
    def error(self) -> TritonError:
        """The error that ended the request."""
        assert self.is_complete
        error = self.responses[-1].error
        assert error is not None
        return error


class InferenceRequest:
    """A request made of arrays."""

    def __init__(
        self, arrays: Mapping[str, Array], request_id: str = "", parameters: str = "{}"
    ) -> None:
        self._arrays, self._request_id, self._parameters = arrays, request_id, parameters
        self.output_names: list[str] = []
        self.sender = Sender()

    def parameters(self) -> str:
        return self._parameters

    def request_id(self) -> str:
        return self._request_id

    def inputs(self) -> list[Tensor]:
        return [Tensor(name, array) for name, array in self._arrays.items()]

    def requested_output_names(self) -> list[str]:
        return self.output_names

    def get_response_sender(self) -> Sender:
        return self.sender


def text_array(*texts: str, shape: tuple[int, ...] = (-1, 1)) -> Array:
    """Return a string tensor, (n, 1) unless another shape is asked for."""
    return np.array([text.encode("utf-8") for text in texts], dtype=np.object_).reshape(shape)


class MetricFamily:
    """Keeps the metrics of a family by their labels, in `made` by name."""

    GAUGE, COUNTER, HISTOGRAM = "gauge", "counter", "histogram"
    made: ClassVar[dict[str, MetricFamily]] = {}

    def __init__(self, name: str, description: str, kind: str) -> None:
        self.kind = kind
        self.metrics: list[Metric] = []
        self.made[name] = self

    def Metric(self, labels: dict[str, str], buckets: list[float] | None = None) -> Metric:
        self.metrics.append(Metric(labels))
        return self.metrics[-1]


class Metric:
    """One metric: its labels and its value, or all values it observed."""

    def __init__(self, labels: dict[str, str]) -> None:
        self.labels, self.value = labels, 0.0
        self.observed: list[float] = []

    def set(self, value: float) -> None:
        self.value = value

    def increment(self, value: float) -> None:
        self.value += value

    def observe(self, value: float) -> None:
        self.observed.append(value)


sys.modules["triton_python_backend_utils"] = sys.modules[__name__]
