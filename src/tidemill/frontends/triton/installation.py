"""Finds a tritonserver and the environment it needs.

In: this interpreter and the PATH. Out: `Installation`: the binary, its backends and libraries, and
the process environment for the Python backend's stub: this interpreter first on PATH, its own
libpython first among libraries (another of the same minor version breaks `import ssl`), and a
numpy that the stub can read. Starts nothing.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tidemill.base.errors import ServerError

BINARY = "tritonserver"
STUB = "triton_python_backend_stub"
PYTHON_LIBRARY = "libtriton_python.so"
# The last is what tensorrtllm was called in its first release.
BACKEND_NAMES = ("tidemill", "tensorrtllm", "inflight_batcher_llm")
BACKEND_MODEL_PY = '''"""Serves models whose config.pbtxt names this backend."""

from tidemill.frontends.triton.any_model import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''
INSTALL_HINT = "pip install 'tidemill[triton]', or put a tritonserver on PATH"


@dataclass(frozen=True)
class Installation:
    """A tritonserver: its binary; from the wheel also its backends, stub and libraries."""

    binary: Path
    backends: Path | None = None
    stub: Path | None = None
    libraries: tuple[Path, ...] = ()


def find_installation(search_path: str | None = None) -> Installation:
    """Return the wheel's tritonserver, else the one on PATH.

    Raises: ServerError when there is none, or when the wheel's cannot run this interpreter.
    """
    spec = importlib.util.find_spec("pytriton")
    if spec is not None and spec.submodule_search_locations:
        return _wheel_installation(Path(spec.submodule_search_locations[0]))
    on_path = shutil.which(BINARY, path=search_path)
    if on_path is None:
        raise ServerError(
            "no tritonserver was found",
            where=f"{sys.prefix} and PATH",
            expected="the wheel nvidia-pytriton, or tritonserver on PATH",
            got="neither",
            hint=INSTALL_HINT,
        )
    return Installation(Path(on_path))


def _wheel_installation(package: Path) -> Installation:
    root = package / "tritonserver"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = root / "python_backend_stubs" / version / STUB
    if not stub.is_file():
        raise ServerError(
            "the wheel's tritonserver has no stub for this Python",
            where=str(stub.parent),
            expected="one of " + ", ".join(sorted(path.name for path in stub.parents[1].iterdir())),
            got=version,
            hint="an environment with one of those versions",
        )
    check_numpy(importlib.metadata.version("numpy"))
    return Installation(
        binary=root / "bin" / BINARY,
        backends=root / "backends",
        stub=stub,
        libraries=(find_libpython_dir(), package.parent / "nvidia_pytriton.libs"),
    )


def check_numpy(version: str) -> None:
    """Refuse a numpy under which the wheel's stub dies at the first string tensor.

    Raises: ServerError for numpy 2 and later.
    """
    if int(version.split(".")[0]) >= 2:
        raise ServerError(
            "the wheel's tritonserver cannot run with this numpy",
            where=sys.prefix,
            expected="numpy 1.26",
            got=f"numpy {version}",
            hint="pip install 'numpy>=1.26,<2'",
        )


def find_libpython_dir() -> Path:
    """Return the directory of this interpreter's shared library, which the stub links.

    Raises: ServerError when the interpreter was built without one.
    """
    name = f"libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0"
    libdir = sysconfig.get_config_var("LIBDIR") or "/usr/lib"
    multiarch = sysconfig.get_config_var("MULTIARCH") or ""
    base = Path(sys.base_prefix) / "lib"
    candidates = [base, Path(libdir), Path(libdir) / multiarch, Path("/usr/lib") / multiarch]
    for directory in candidates:
        if (directory / name).is_file():
            return directory
    raise ServerError(
        "this Python has no shared library, which Triton's Python backend needs",
        where=", ".join(dict.fromkeys(str(path) for path in candidates)),
        expected=name,
        got="none",
        hint="a Python built with --enable-shared (Debian: apt install libpython3-dev)",
    )


def stage_backends(installation: Installation, target: Path) -> Path | None:
    """Lay out a backend directory with this Python's stub and ours; return None for one on PATH.

    The wheel keeps its stubs apart, one for each Python version, where the server does not look.
    """
    if installation.backends is None or installation.stub is None:
        return None
    for source in sorted((installation.backends / "python").iterdir()):
        if source.name == PYTHON_LIBRARY:
            # Backends of ours are run by it, and then the server accepts no link that leads away.
            (target / "python").mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target / "python" / source.name)
        elif source.is_file():
            _link(source, target / "python" / source.name)
    _link(installation.stub, target / "python" / STUB)
    write_backends(target)
    return target


def write_backends(backends: Path) -> None:
    """Install ours into a backend directory, so that models need no model.py of their own."""
    for name in BACKEND_NAMES:
        (backends / name).mkdir(parents=True, exist_ok=True)
        (backends / name / "model.py").write_text(BACKEND_MODEL_PY, encoding="utf-8")


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.symlink_to(source)


def server_environment(
    installation: Installation, inherited: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return the environment in which the server's stub finds this interpreter and its packages."""
    environment = dict(os.environ if inherited is None else inherited)
    environment["PATH"] = _join(Path(sys.prefix) / "bin", environment.get("PATH"))
    for library in reversed(installation.libraries):
        environment["LD_LIBRARY_PATH"] = _join(library, environment.get("LD_LIBRARY_PATH"))
    environment["PYTHONUNBUFFERED"] = "1"
    return environment


def _join(first: Path, rest: str | None) -> str:
    return f"{first}{os.pathsep}{rest}" if rest else str(first)
