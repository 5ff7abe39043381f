"""Triton as a frontend.

In a stub of Triton's, a process of ours, nothing is imported from the directory that the server was
started in, and unused modules are not read.
"""

import sys

if "c_python_backend_utils" in sys.builtin_module_names:  # only a stub has it
    sys.path[:] = filter(None, sys.path)
    import tidemill.base.lean_imports  # noqa: F401 (before any model imports NumPy)
