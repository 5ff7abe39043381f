"""The deploy verb: an engine to a Triton model repository.

One of the CLI's two doors to the Triton frontend; the import contracts name them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tidemill.frontends.cli.shell import check_choice, say

STYLES = ("text", "tokens")

HELP = """Write a Triton model repository for an engine.

--style text takes and gives text, with all sampling inputs and streaming; --style tokens is the
packed-token layout (input_ids, input_lengths, output_ids).

\b
Examples:
  tidemill deploy --engine_dir ./engine --model_repository ./repository --name llama2_7b
  tidemill deploy --engine_dir ./engine --model_repository ./repository --name llama2_7b \\
      --style tokens
"""


def deploy(
    engine_dir: Annotated[Path, typer.Option("--engine_dir", help="Engine that build wrote.")],
    model_repository: Annotated[
        Path, typer.Option("--model_repository", help="Repository, made if it is not there.")
    ],
    name: Annotated[str, typer.Option("--name", help="Name that clients use.")],
    style: Annotated[
        str, typer.Option("--style", help="One of: " + ", ".join(STYLES) + ".")
    ] = "text",
) -> None:
    check_choice("--style of deploy", style, STYLES)

    from tidemill.frontends.triton.deploy import DeployRequest
    from tidemill.frontends.triton.deploy import deploy as deploy_engine

    say(f"deployed {deploy_engine(DeployRequest(engine_dir, model_repository, name, style))}")
