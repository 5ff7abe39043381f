"""Plain records for what is made in every step: slots, compared by value, nothing else.

The type checker takes them for frozen. At run time they are not: right after a native call, which
leaves the caches cold, a frozen dataclass takes 16 us to make, a named tuple 13 and 5 to read from,
a record 7 and 0.2 (AMD EPYC, 2026-11-28; decision 060).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

Record = TypeVar("Record")

if TYPE_CHECKING:
    from typing_extensions import dataclass_transform

    @dataclass_transform(frozen_default=True)
    def record(cls: type[Record]) -> type[Record]: ...
else:
    record = dataclass(slots=True)
