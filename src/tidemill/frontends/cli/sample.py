"""The sample verb: fetches the small model that the demo and the tests use.

Knows where it goes; how it is fetched is `api.sample`'s.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

HELP = """Fetch the sample model, SmolLM2-135M-Instruct as GGUF (98 MB).

Prints the file's path, so that a shell can use it.

\b
Examples:
  tidemill sample
  tidemill sample --output_dir ./models
"""


def sample(
    output_dir: Annotated[
        Path | None,
        typer.Option("--output_dir", help="Where to put it; default: the user's cache."),
    ] = None,
) -> None:
    from tidemill.api.sample import fetch_sample

    print(fetch_sample(output_dir) if output_dir else fetch_sample())
