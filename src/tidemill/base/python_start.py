"""Starts a Python of ours that imports nothing from the directory it happens to be started in.

In: the module whose `main` is to run. Out: what follows `python` on a command line. Where this
process imports from there, as `python -m tidemill` does beside its source, that one does, too.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress


def python_arguments(module: str) -> tuple[str, str]:
    """Return the arguments that run a module's `main` and exit with what it returns."""
    code = f"from {module} import main; raise SystemExit(main())"
    here = {""}
    with suppress(FileNotFoundError):  # nothing can be imported from what was removed
        here.add(os.getcwd())
    if here.isdisjoint(sys.path):
        code = "import sys; sys.path[:] = filter(None, sys.path); " + code
    return "-c", code
