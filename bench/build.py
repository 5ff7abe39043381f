"""Times the way to a first answer: convert, build, load, and counts what an install takes on disk.

Uses the sample model in bfloat16. Checks the answer first: the engine's first words about France
name its capital. Loading is timed in processes of their own, warm: from before `LLM(...)`, with
all of its imports, to the first token, and the whole process. Prints one JSON line for each.
Units: seconds, megabytes.
"""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.parts.command_line import parser_of
from bench.parts.figures import print_line, spread
from tidemill.api.build import BuildRequest, build
from tidemill.api.convert import ConvertRequest, convert
from tidemill.api.sample import fetch_sample

NUM_BUILDS, NUM_LOADS = 5, 11
FIRST_TOKEN = """
import json, sys, time
start = time.perf_counter()
from tidemill.api.llm import LLM, SamplingParams
with LLM(sys.argv[1]) as llm:
    text = ""
    for update in llm.generate_stream("The capital of France is", SamplingParams(max_tokens=2)):
        if not text:
            first_s = time.perf_counter() - start
        text += update.text
print(json.dumps([first_s, text]))
"""


def main() -> None:
    """Build, check, time, print."""
    parser_of(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint, engine = Path(scratch) / "checkpoint", Path(scratch) / "engine"
        start = time.perf_counter()
        convert(ConvertRequest(fetch_sample(), checkpoint, dtype="bfloat16"))
        convert_s = time.perf_counter() - start
        build_s = [time_build(checkpoint, engine) for _ in range(NUM_BUILDS)]
        loads = [time_load(engine) for _ in range(NUM_LOADS)][1:]
    print_line("build", what="convert the sample", seconds=round(convert_s, 2))
    print_line("build", what="build the sample", seconds=spread(build_s))
    print_line("build", what="load to first token", seconds=spread([first for first, _ in loads]))
    print_line("build", what="process to first tokens", seconds=spread([all_ for _, all_ in loads]))
    sizes = installed_megabytes()
    largest = dict(sorted(sizes.items(), key=lambda item: -item[1])[:5])
    print_line("build", what="install without extras", megabytes=sum(sizes.values()), most=largest)


def time_build(checkpoint: Path, engine: Path) -> float:
    start = time.perf_counter()
    build(BuildRequest(checkpoint, engine))
    return time.perf_counter() - start


def time_load(engine: Path) -> tuple[float, float]:
    """Ask in a new process; returns the time to the first token, and the whole process's."""
    start = time.perf_counter()
    command = [sys.executable, "-c", FIRST_TOKEN, str(engine)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    whole_s = time.perf_counter() - start
    first_s, text = json.loads(done.stdout)
    assert "Paris" in text, text
    return first_s, whole_s


def installed_megabytes() -> dict[str, int]:
    """Return the size of this package and of everything it requires, as installed here."""
    sizes: dict[str, int] = {}
    waiting = ["tidemill"]
    while waiting:
        name = waiting.pop().lower().replace("_", "-")
        if name in sizes:
            continue
        try:
            found = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # required elsewhere only, by another platform or Python
        paths = [Path(str(file.locate())) for file in found.files or ()]
        sizes[name] = round(sum(p.stat().st_size for p in paths if p.is_file()) / 1e6)
        needed = [each for each in found.requires or () if "extra ==" not in each]
        waiting += [
            each.split(";")[0].split("[")[0].strip(" ()<>=!~0123456789.,") for each in needed
        ]
    return sizes


if __name__ == "__main__":
    main()
