"""What the language asks of an op's row, so that checker, parser and builder need no op by name.

In: nothing; these are types. Out: `OpRule`, the part of a row that concerns types and attributes,
and `RuleTable`, from kind to row. The rows themselves live in `ops`, which is above this room and
passes its table down as a parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from tidemill.ir.graph import AttrValue, TensorType

AttrTypes = Mapping[str, type[AttrValue]]
TypeRule = Callable[[Sequence[TensorType], Mapping[str, AttrValue]], tuple[TensorType, ...]]


class TypeFault(Exception):
    """An op's inputs or attributes break its rule; the message says expected against got.

    Internal: the checker collects these, it never reaches a user as it is.
    """


class OpRule(Protocol):
    """The typing half of an op's row.

    `rule` gives the output types or raises `TypeFault`. `attrs` names every attribute, all
    required, with its type. `inplace` maps an output to the input whose memory it overwrites;
    negative inputs count from the end.
    """

    @property
    def rule(self) -> TypeRule: ...

    @property
    def attrs(self) -> AttrTypes: ...

    @property
    def inplace(self) -> Mapping[int, int]: ...


RuleTable = Mapping[str, OpRule]


def output_types(
    row: OpRule, inputs: Sequence[TensorType], attrs: Mapping[str, AttrValue]
) -> tuple[TensorType, ...]:
    """Infer an op's output types.

    Raises: TypeFault when attributes do not match the schema or the inputs break the rule.
    """
    faults = [f"lacks attribute {name}" for name in row.attrs if name not in attrs]
    faults += [f"has unknown attribute {name}" for name in attrs if name not in row.attrs]
    faults += [
        f"attribute {name}: expected {row.attrs[name].__name__}, got {value!r}"
        for name, value in attrs.items()
        if name in row.attrs and type(value) is not row.attrs[name]
    ]
    if faults:
        raise TypeFault("; ".join(faults))
    return row.rule(inputs, attrs)
