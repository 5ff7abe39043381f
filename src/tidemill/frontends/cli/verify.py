"""The verify verb: compares an engine with its checkpoint's own maths, layer by layer.

A mismatch is the library's VerificationError, so the exit code says it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tidemill.frontends.cli.shell import print_json

HELP = """Compare a built engine with its checkpoint, layer by layer.

\b
Examples:
  tidemill verify --engine_dir ./engine --checkpoint_dir ./ckpt
"""


def verify(
    engine_dir: Annotated[Path, typer.Option("--engine_dir", help="Engine that build wrote.")],
    checkpoint_dir: Annotated[
        Path, typer.Option("--checkpoint_dir", help="Checkpoint that it was built from.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    from tidemill.api.verify import verify_engine

    report = verify_engine(engine_dir, checkpoint_dir)
    if as_json:
        print_json(report)
    else:
        print(report)
