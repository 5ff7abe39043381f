"""A compilation unit: functions under construction and the intrinsics they call.

In: functions made by `Module.function`. Out: the module's LLVM IR for one CPU.
"""

from __future__ import annotations

from tidemill.codegen.emitter import Function
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

    def text(self, triple: str, cpu: str, features: str, vector_bits: int) -> str:
        """The module as LLVM IR for one CPU.

        Stores must not become calls of memset or the like, and no register is wider than asked for.
        """
        attributes = (
            f'attributes #0 = {{ "target-cpu"="{cpu}" "target-features"="{features}" '
            f'"prefer-vector-width"="{vector_bits}" "min-legal-vector-width"="{vector_bits}" '
            '"frame-pointer"="none" "no-builtins" }'
        )
        declared = [self.declarations[name] for name in sorted(self.declarations)]
        bodies = [f.text() for f in self.functions]
        return "\n".join([f'target triple = "{triple}"', *declared, *bodies, attributes, ""])
