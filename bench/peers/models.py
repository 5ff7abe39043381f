"""Makes a model's files for every engine from one Hugging Face directory in bfloat16.

    python -m bench.peers.models [smollm2 llama-1.1b]

What exists is kept, but for our engines of other commits; what a peer's own tools make is made in
its environment, where that is installed. Everything lies under `peers_dir()/models/MODEL`.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from bench.parts.command_line import parser_of
from bench.parts.figures import commit
from bench.parts.llama_directory import NAME_TO_SHAPE, write_llama_directory
from bench.peers.engines import ROWS, EngineRow, environment_of, peers_dir
from bench.peers.gguf_model import write_gguf
from bench.peers.w8a8_model import write_w8a8
from tidemill.api.build import BuildRequest, build
from tidemill.api.convert import ConvertRequest, convert

QUANTIZE = Path(__file__).resolve().parent / "runners" / "quantize_gguf.py"
MODEL_TO_INT4_GROUP = {"smollm2": 64, "llama-1.1b": 128}


def main() -> None:
    """Make what is missing."""
    parser = parser_of(__doc__)
    parser.add_argument("models", nargs="*", default=list(NAME_TO_SHAPE))
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    for model in options.models:
        make_files(model, peers_dir() / "models" / model, options.threads)


def make_files(model: str, directory: Path, num_threads: int) -> None:
    """Make a model's files, one by one."""
    directory.mkdir(parents=True, exist_ok=True)
    hf_dir, plain = directory / "hf", directory / "bf16.gguf"
    if not hf_dir.exists():
        write_llama_directory(model, hf_dir)
    if not (directory / "checkpoint").exists():
        convert(ConvertRequest(hf_dir, directory / "checkpoint", dtype="bfloat16"))
    if not plain.exists():
        write_gguf(hf_dir, plain)
    if not (directory / "w8a8").exists():
        write_w8a8(hf_dir, directory / "w8a8")
    for name in ("q8_0", "q4_0", "q4_0_pure"):
        staged = directory / f"{name}.part"
        command = ["python", str(QUANTIZE), str(plain), str(staged), name, str(num_threads)]
        _make(command, "llama_cpp", staged, directory / f"{name}.gguf")
    for weights in ("fp16", "int8", "int4"):
        staged = directory / f"openvino-{weights}.part"
        command = ["optimum-cli", "export", "openvino", "--model", str(hf_dir)]
        command += ["--task", "text-generation-with-past", "--weight-format", weights]
        if weights == "int4":
            group = str(MODEL_TO_INT4_GROUP[model])
            command += ["--sym", "--ratio", "1.0", "--group-size", group]
        _make([*command, str(staged)], "openvino", staged, directory / f"openvino-{weights}")
    for row in ROWS:
        if row.is_ours:
            refresh_engine(directory, row)


def _make(command: list[str], home: str, staged: Path, target: Path) -> None:
    """Run a tool of a peer's environment, and rename what it wrote."""
    program = peers_dir() / home / "env" / "bin" / command[0]
    if target.exists() or not program.exists():
        return
    subprocess.run([program, *command[1:]], check=True, env=environment_of(home, 1))
    staged.rename(target)


def refresh_engine(model_dir: Path, row: EngineRow) -> None:
    """Build our engine for a row, unless this very commit built it already."""
    engine, stamp = model_dir / row.file, model_dir / f"{row.file}.commit"
    now = commit()
    is_current = stamp.exists() and stamp.read_text() == now and not now.endswith("-dirty")
    if is_current or not (model_dir / "checkpoint").exists():
        return
    shutil.rmtree(engine, ignore_errors=True)
    request = BuildRequest(
        model_dir / "checkpoint", engine, quant=row.quant, quant_head=row.quant_head
    )
    build(request)
    stamp.write_text(now)


if __name__ == "__main__":
    main()
