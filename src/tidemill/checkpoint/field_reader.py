"""Typed reading of a JSON object's fields that collects faults instead of stopping at the first.

In: a dict. Out: values of the asked type; where a field is missing or unacceptable, a stand-in,
and one sentence in `faults`. Null counts as absent, as in TensorRT-LLM's and Hugging Face's files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class FieldReader:
    """Reads fields of one object; look at `faults` when done."""

    values: Mapping[str, Any]
    prefix: str = ""
    faults: list[str] = field(default_factory=list)

    def integer(
        self, key: str, minimum: int, default: int | None = None, maximum: int = 2**31 - 1
    ) -> int:
        value = self._get(key, default)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            self._refuse(key, value, "an integer")
            return 0
        if not minimum <= value <= maximum:
            self._refuse(key, value, f"an integer from {minimum} to {maximum}")
        return min(max(value, minimum), maximum)

    def number(self, key: str, default: float, maximum: float = 1e30) -> float:
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            self._refuse(key, value, "a number")
            return default
        if not 0 < value <= maximum:
            self._refuse(key, value, f"a number above 0 and up to {maximum:g}")
            return default
        return float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        value = self._get(key, default)
        if not isinstance(value, bool):
            self._refuse(key, value, "true or false")
            return default
        return value

    def text(self, key: str, default: str | None = None) -> str:
        value = self._get(key, default)
        if not isinstance(value, str) or not value:
            self._refuse(key, value, "a text")
            return ""
        return value

    def choice(self, key: str, allowed: Sequence[str], default: str | None = None) -> str:
        value = self._get(key, default)
        if value not in allowed:
            self._refuse(key, value, "one of " + ", ".join(allowed))
            return allowed[0]
        return str(value)

    def mapping(self, key: str) -> dict[str, Any] | None:
        value = self._get(key, None)
        if value is not None and not isinstance(value, dict):
            self._refuse(key, value, "an object")
            return None
        return value

    def _get(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        return default if value is None else value

    def _refuse(self, key: str, value: Any, expected: str) -> None:
        state = "missing" if value is None else f"{value!r}"
        self.faults.append(f"{self.prefix}{key} is {state}, expected {expected}")
