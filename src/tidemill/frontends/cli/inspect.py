"""The inspect verb: prints one view of an engine.

Knows the names of the views; what they show is `api.inspect`'s.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tidemill.frontends.cli.shell import check_choice

VIEWS = ("summary", "graph", "plan", "memory", "tactics", "sizes", "config")

HELP = """Show what is inside an engine.

\b
Examples:
  tidemill inspect --engine_dir ./engine
  tidemill inspect --engine_dir ./engine --what graph
  tidemill inspect --engine_dir ./engine --what memory
"""


def inspect(
    engine_dir: Annotated[Path, typer.Option("--engine_dir", help="Engine that build wrote.")],
    what: Annotated[
        str, typer.Option("--what", help="One of: " + ", ".join(VIEWS) + ".")
    ] = "summary",
    rank: Annotated[int, typer.Option("--rank", min=0, help="Which rank's engine file.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the facts as JSON.")] = False,
) -> None:
    check_choice("--what of inspect", what, VIEWS)

    from tidemill.api.inspect import inspect_engine

    print(inspect_engine(engine_dir, what, as_json, rank))
