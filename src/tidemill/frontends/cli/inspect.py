"""The inspect verb: prints one view of an engine, or the profile of a step.

Knows the names of the views; what they show is `api.inspect`'s and `api.profile`'s.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tidemill.frontends.cli.progress_bar import progress_bar
from tidemill.frontends.cli.shell import check_choice, print_json, say

if TYPE_CHECKING:
    from tidemill.api.profile import ProfileRequest

VIEWS = ("summary", "graph", "plan", "memory", "tactics", "sizes", "config")

HELP = """Show what is inside an engine.

\b
Examples:
  tidemill inspect --engine_dir ./engine
  tidemill inspect --engine_dir ./engine --what graph
  tidemill inspect --engine_dir ./engine --what memory
  tidemill inspect --engine_dir ./engine --profile
  tidemill inspect --engine_dir ./engine --profile --batch_size 8 --position 512 --html step.html
"""


def inspect(
    engine_dir: Annotated[Path, typer.Option("--engine_dir", help="Engine that build wrote.")],
    what: Annotated[
        str, typer.Option("--what", help="One of: " + ", ".join(VIEWS) + ".")
    ] = "summary",
    as_json: Annotated[bool, typer.Option("--json", help="Print the facts as JSON.")] = False,
    is_profiled: Annotated[
        bool, typer.Option("--profile", help="Run steps; show time and share of roofline by op.")
    ] = False,
    batch_size: Annotated[int, typer.Option("--batch_size", help="Requests in the step.")] = 1,
    position: Annotated[int, typer.Option("--position", help="Tokens that each has cached.")] = 128,
    num_tokens: Annotated[
        int, typer.Option("--num_tokens", help="New tokens of each; 1 is decode.")
    ] = 1,
    threads: Annotated[int | None, typer.Option("--threads", help="Default: all cores.")] = None,
    html: Annotated[
        Path | None, typer.Option("--html", help="Write the profile as a page; implies --profile.")
    ] = None,
) -> None:
    if is_profiled or html is not None:
        from tidemill.api.profile import ProfileRequest

        request = ProfileRequest(engine_dir, batch_size, position, num_tokens, num_threads=threads)
        _show_profile(request, html, as_json)
        return
    check_choice("--what of inspect", what, VIEWS)

    from tidemill.api.inspect import inspect_engine

    print(inspect_engine(engine_dir, what, as_json))


def _show_profile(request: ProfileRequest, html: Path | None, as_json: bool) -> None:
    from tidemill.api.profile import profile_engine
    from tidemill.frontends.cli.profile_page import write_profile_page

    with progress_bar("profile") as progress:
        report = profile_engine(request, progress)
    if html is not None:
        write_profile_page(report, html)
        say(f"page: {html}")
    if as_json:
        print_json(report)
    else:
        print(report)
