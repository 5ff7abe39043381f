"""Lets NumPy's parts that only calculations need wait until they are used; import it before NumPy.

NumPy 1.26 reads masked arrays, random numbers, polynomials and Fourier transforms whenever it is
imported: 3 MB of a process's own, and 2 MB of libraries. For processes of ours alone; where NumPy
is there already, this changes nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import LazyLoader
from types import ModuleType

_PARTS = {f"numpy.{name}" for name in ("ctypeslib", "fft", "ma", "polynomial", "random")}


class _LazyParts:
    """Finds the parts as others do, but has them run when they are first looked into."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name in _PARTS else None
        if spec is not None and spec.loader is not None:
            spec.loader = LazyLoader(spec.loader)
        return spec


sys.meta_path.insert(0, _LazyParts)
