"""Lets modules that others import and never use wait until they are used; import it first.

NumPy 1.26 reads masked arrays, random numbers, polynomials and Fourier transforms whenever it is
imported: 3 MB of a process's own, and 2 MB of libraries. asyncio reads what encrypts connections.
For processes of ours alone; what is there already stays, and whoever uses the others has them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader
from importlib.machinery import ModuleSpec, PathFinder
from threading import RLock
from types import ModuleType
from typing import Any

_NUMPY_PARTS = {f"numpy.{name}" for name in ("ctypeslib", "fft", "ma", "polynomial", "random")}
_WAITING = {*_NUMPY_PARTS, "asyncio.sslproto", "ssl"}
_READING = RLock()


class _WaitingModule(ModuleType):
    """Runs when it is asked for what only its code defines.

    importlib's LazyLoader runs a module for its `__file__` or `__spec__`, too, which Triton's
    logger and a second `import` ask of every module.
    """

    def __getattr__(self, name: str) -> Any:
        with _READING:
            spec = self.__spec__
            if spec is not None and isinstance(spec.loader, _Later):
                spec.loader = spec.loader.loader
                spec.loader.exec_module(self)
                self.__class__ = ModuleType  # type: ignore[assignment]
        return ModuleType.__getattribute__(self, name)


class _Later(Loader):
    """Leaves a module to itself."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__class__ = _WaitingModule


class _Finder:
    """Finds the modules as others do."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name in _WAITING else None
        if spec is not None and spec.loader is not None:
            spec.loader = _Later(spec.loader)
        return spec


sys.meta_path.insert(0, _Finder)
