"""A compilation unit: functions under construction and the intrinsics they call.

In: functions made by `Module.function`. Out: the module's LLVM IR for one CPU.
"""

from __future__ import annotations

from tidemill.codegen.emitter import Function
from tidemill.codegen.isa import Isa
from tidemill.codegen.types import Type


class Module:
    """A compilation unit: functions and the intrinsics they call."""

    def __init__(self) -> None:
        self.functions: list[Function] = []
        self.declarations: dict[str, str] = {}

    def function(self, name: str, *, exported: bool = False, **args: Type) -> Function:
        f = Function(name, args, exported, self.declarations.__setitem__)
        self.functions.append(f)
        return f

    def text(self, isa: Isa) -> str:
        """The module as LLVM IR for one CPU.

        Stores must not become calls of memset or the like, and no register is wider than asked for.
        """
        target, bits = isa.target, isa.vector_bits
        attributes = (
            f'attributes #0 = {{ "target-cpu"="{target.cpu}" "target-features"="{target.features}" '
            f'"prefer-vector-width"="{bits}" "min-legal-vector-width"="{bits}" '
            '"frame-pointer"="none" "no-builtins" }'
        )
        declared = [self.declarations[name] for name in sorted(self.declarations)]
        bodies = [f.text() for f in self.functions]
        return "\n".join([f'target triple = "{target.triple}"', *declared, *bodies, attributes, ""])
