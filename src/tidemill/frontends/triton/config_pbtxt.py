"""A Triton model's config.pbtxt as data, with its writer.

In: tensors, policy and parameters of one model. Out: text-format protobuf that any tritonserver
reads. The writer needs no third-party package, so that `deploy` works without the `triton` extra;
reading what users wrote is `user_config.py`, where protobuf itself is the parser.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

INDENT = "  "


class DataType(Enum):
    """Element types of the contract's tensors, by Triton's names."""

    BOOL = "TYPE_BOOL"
    UINT8 = "TYPE_UINT8"
    INT32 = "TYPE_INT32"
    INT64 = "TYPE_INT64"
    UINT64 = "TYPE_UINT64"
    FP16 = "TYPE_FP16"
    FP32 = "TYPE_FP32"
    STRING = "TYPE_STRING"


@dataclass(frozen=True)
class TensorConfig:
    """One input or output; a batch dimension, where the model has one, is not part of `dims`.

    `drops_dims`: clients send (batch, 1), the model sees (batch,). `is_ragged`: rows of one batch
    may differ in shape.
    """

    name: str
    data_type: DataType
    dims: tuple[int, ...] = (1,)
    is_optional: bool = False
    drops_dims: bool = False
    is_ragged: bool = False


@dataclass(frozen=True)
class EnsembleStep:
    """One model of an ensemble: its tensors by name, to the ensemble's own tensors."""

    model_name: str
    input_map: Mapping[str, str]
    output_map: Mapping[str, str]


@dataclass(frozen=True)
class ModelConfig:
    """What this house says about a model in its config.pbtxt.

    An ensemble has `steps` and no backend; its steps say whether it streams. Units:
    `max_batch_size` 0 means that tensors have no batch dimension.
    """

    name: str
    max_batch_size: int
    inputs: tuple[TensorConfig, ...]
    outputs: tuple[TensorConfig, ...]
    is_decoupled: bool = False
    parameters: Mapping[str, str] = field(default_factory=dict)
    steps: tuple[EnsembleStep, ...] = ()


def write_config(config: ModelConfig) -> str:
    """Return the config.pbtxt text of a model: one instance on the CPU, never a dynamic batcher.

    Ranks and batching belong to the engine; Triton sees one instance that accepts every request.
    """
    lines = [
        f"name: {quote(config.name)}",
        'platform: "ensemble"' if config.steps else 'backend: "python"',
        f"max_batch_size: {config.max_batch_size}",
        *_tensor_list("input", config.inputs),
        *_tensor_list("output", config.outputs),
        *(_ensemble(config.steps) if config.steps else _execution(config)),
    ]
    return "\n".join(lines) + "\n" + write_parameters(config.parameters)


def write_parameters(parameters: Mapping[str, str]) -> str:
    """Return parameters as text of config.pbtxt; of two with one name, the later counts."""
    return "".join(
        f"parameters {{ key: {quote(key)} value: {{ string_value: {quote(value)} }} }}\n"
        for key, value in parameters.items()
    )


def quote(text: str) -> str:
    """Return the text as a protobuf string literal, in ASCII."""
    escaped = []
    for byte in text.encode("utf-8"):
        character = chr(byte)
        if character in '"\\':
            escaped.append("\\" + character)
        elif 0x20 <= byte < 0x7F:
            escaped.append(character)
        else:
            escaped.append(f"\\{byte:03o}")
    return '"' + "".join(escaped) + '"'


def _execution(config: ModelConfig) -> list[str]:
    return [
        f"model_transaction_policy {{ decoupled: {_boolean(config.is_decoupled)} }}",
        "instance_group [ { count: 1 kind: KIND_CPU } ]",
    ]


def _ensemble(steps: tuple[EnsembleStep, ...]) -> list[str]:
    lines = ["ensemble_scheduling {", f"{INDENT}step ["]
    for place, step in enumerate(steps):
        lines += [f"{INDENT * 2}{{ model_name: {quote(step.model_name)} model_version: -1"]
        for kind, names in (("input_map", step.input_map), ("output_map", step.output_map)):
            lines += [
                f"{INDENT * 3}{kind} {{ key: {quote(own)} value: {quote(outer)} }}"
                for own, outer in names.items()
            ]
        lines += [f"{INDENT * 2}}}" + ("," if place + 1 < len(steps) else "")]
    return [*lines, f"{INDENT}]", "}"]


def _tensor_list(kind: str, tensors: tuple[TensorConfig, ...]) -> list[str]:
    rows = [INDENT + _tensor(tensor) for tensor in tensors]
    return [f"{kind} [", ",\n".join(rows), "]"]


def _tensor(tensor: TensorConfig) -> str:
    dims = ", ".join(str(size) for size in tensor.dims)
    flags = (
        ("optional: true", tensor.is_optional),
        ("reshape: { shape: [ ] }", tensor.drops_dims),
        ("allow_ragged_batch: true", tensor.is_ragged),
    )
    extra = "".join(f" {text}" for text, is_set in flags if is_set)
    name, data_type = quote(tensor.name), tensor.data_type.value
    return f"{{ name: {name} data_type: {data_type} dims: [ {dims} ]{extra} }}"


def _boolean(value: bool) -> str:
    return "true" if value else "false"
