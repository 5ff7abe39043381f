"""The `tidemill` command: its verbs in path order, and nothing else.

Each verb parses, builds one dataclass and calls one library function, which it imports when it
runs; so help needs none of the library. Flags are spelled with underscores or with dashes.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, Any

import typer

from tidemill.base.version import __version__
from tidemill.frontends.cli import (
    bench,
    build,
    convert,
    demo,
    deploy,
    inspect,
    run,
    sample,
    serve,
    verify,
)
from tidemill.frontends.cli.shell import (
    EXIT_STOPPED,
    FOREIGN_FLAGS_CONTEXT,
    end_as_by_ctrl_c,
    run_app,
    show_all_characters,
)

HELP = """Carry a language-model checkpoint to a running service.

The path: sample or your own model, then convert, build, (inspect, verify, run,) deploy, serve.
TIDEMILL_DEBUG=1..5 shows more; docs/DEBUG.md lists what.
"""


def _dashes(name: str) -> str:
    """Make --model_dir and --model-dir the same flag."""
    return name.replace("_", "-")


_CONTEXT: dict[str, Any] = {
    "token_normalize_func": _dashes,
    "help_option_names": ["-h", "--help"],
    "max_content_width": 100,
}

app = typer.Typer(
    help=HELP,
    rich_markup_mode=None,
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings=_CONTEXT,
)


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        print(f"tidemill {__version__}")
        raise typer.Exit


@app.callback(help=HELP)
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_print_version, help="Print and exit."),
    ] = False,
) -> None:
    del version  # its callback has acted


# Verbs in path order, which is the order of the help.
app.command("sample", help=sample.HELP)(sample.sample)
app.command("convert", help=convert.HELP, context_settings=FOREIGN_FLAGS_CONTEXT)(convert.convert)
app.command("build", help=build.HELP, context_settings=FOREIGN_FLAGS_CONTEXT)(build.build)
app.command("inspect", help=inspect.HELP)(inspect.inspect)
app.command("verify", help=verify.HELP)(verify.verify)
app.command("run", help=run.HELP, context_settings=FOREIGN_FLAGS_CONTEXT)(run.run)
app.command("deploy", help=deploy.HELP)(deploy.deploy)
app.command("serve", help=serve.HELP)(serve.serve)
app.command("bench", help=bench.HELP)(bench.bench)
app.command("demo", help=demo.HELP)(demo.demo)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave with its exit code.

    A compiler that is still at work when it is stopped is not waited for.
    """
    end_as_by_ctrl_c()
    show_all_characters()
    code = run_app(app, sys.argv[1:] if arguments is None else arguments)
    if code == EXIT_STOPPED:
        with suppress(OSError):
            sys.stdout.flush()
        os._exit(code)
    sys.exit(code)
