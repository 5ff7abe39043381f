"""What every verb shares: how output, notes and errors reach the terminal or a machine.

In: values and errors of the library. Out: text or JSON on stdout, notes and errors on stderr, an
exit code (0 done, 1 failed, 2 command line not understood, 130 stopped). Knows no verb.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from io import TextIOWrapper
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tidemill.base import debug
from tidemill.base.errors import ConfigError, TidemillError, UnsupportedError

if TYPE_CHECKING:
    import typer

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_STOPPED = 130
PATH_FLAGS = ("_dir", "_file", "_map", "_repository")

# What a machine that only serves may leave out.
OPTIONAL_PACKAGES = ("llvmlite", "gguf", "safetensors")

FOREIGN_FLAGS_CONTEXT: dict[str, Any] = {
    "allow_extra_args": True,
    "ignore_unknown_options": True,
}


def end_as_by_ctrl_c() -> None:
    """Let SIGTERM and a terminal that is closed end this process as Ctrl-C does.

    Half a directory, or a server, would outlive it otherwise.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup wants it
            signal.signal(number, signal.default_int_handler)


def show_all_characters() -> None:
    """Let stdout print what its encoding lacks as escapes, as stderr does."""
    if isinstance(sys.stdout, TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def given(**values: Any) -> dict[str, Any]:
    """Keep the flags that were given, so that the library's own defaults fill the others."""
    return {name: value for name, value in values.items() if value is not None}


def check_choice(flag: str, value: str, choices: Sequence[str]) -> str:
    """Return the value if it is one of the choices.

    Raises: ConfigError naming the choices otherwise.
    """
    if value in choices:
        return value
    near = difflib.get_close_matches(value, choices, n=1)
    other = (
        f"leave {flag} out for the default" if flag.startswith("-") else "--help says what each is"
    )
    raise ConfigError(
        "a flag has a value that it cannot have",
        where=flag,
        expected="one of " + ", ".join(choices),
        got=repr(value),
        hint=f"did you mean {near[0]}?" if near else other,
    )


def flags_of(context: typer.Context) -> list[str]:
    """Every flag of the verb itself, as help spells it."""
    return [flag for each in context.command.params for flag in each.opts]


def say(text: str) -> None:
    """Print progress or a note for people, on stderr."""
    print(text, file=sys.stderr, flush=True)


def say_notes(notes: Iterable[str]) -> None:
    """Print one line for each note."""
    for note in notes:
        say(f"note: {note}")


def print_json(value: Any) -> None:
    """Print a dataclass or plain data as one JSON document on stdout."""
    print(json.dumps(as_plain(value), indent=2, sort_keys=True))


def as_plain(value: Any) -> Any:
    """Return dataclasses, paths and enums as data that JSON can carry."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return {field.name: as_plain(getattr(value, field.name)) for field in fields}
    if isinstance(value, dict):
        return {str(key): as_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_plain(item) for item in value]
    if isinstance(value, (str, int, float, bool)) or value is None:
        return value
    return str(value) if isinstance(value, Path) else getattr(value, "value", str(value))


def report_error(error: TidemillError, exit_code: int) -> int:
    """Print an error's four parts, with its traceback from debug level 1 on."""
    if _shows_traceback():
        traceback.print_exception(type(error), error, error.__traceback__)
    say(f"error: {error}")
    return exit_code


def _shows_traceback() -> bool:
    try:
        return debug.shows(debug.Level.DECISIONS)
    except ConfigError:
        return False


def run_app(app: typer.Typer, arguments: Sequence[str]) -> int:
    """Run one command line; return its exit code, having printed any error in our form."""
    import typer  # a server's process goes without

    def parse_and_run() -> int:
        _check_paths(arguments)
        code = app(args=list(arguments), prog_name="tidemill", standalone_mode=False)
        if code == EXIT_STOPPED:  # the parser catches Ctrl-C, and says nothing
            raise KeyboardInterrupt
        return code if isinstance(code, int) else 0

    try:
        return run_verb(parse_and_run, arguments)
    except typer.Abort:
        return _stopped()
    except _usage_error_class(typer.BadParameter) as error:
        return _report_usage(error, arguments)


def run_verb(verb: Callable[[], int], arguments: Sequence[str]) -> int:
    """Run what needs no parser any more; return its exit code, having printed any error."""
    try:
        debug.level()
        return verb()
    except ConfigError as error:
        return report_error(error, EXIT_USAGE)
    except TidemillError as error:
        return report_error(error, EXIT_FAILED)
    except KeyboardInterrupt:
        return _stopped()
    except BrokenPipeError:
        sys.stderr.close()
        return EXIT_FAILED
    except OSError as error:
        return report_error(_refused_by_system(error, arguments), EXIT_FAILED)
    except ModuleNotFoundError as error:
        if error.name not in OPTIONAL_PACKAGES:
            raise
        return report_error(_missing_package(error.name, arguments), EXIT_FAILED)


def _stopped() -> int:
    say("stopped")
    return EXIT_STOPPED


def _check_paths(arguments: Sequence[str]) -> None:
    """An empty path, as an unset variable of a shell gives, must not become this directory."""
    pairs = [*pairwise(arguments), *(word.split("=", 1) for word in arguments if "=" in word)]
    for flag, value in pairs:
        if not value and flag.replace("-", "_").endswith(PATH_FLAGS):
            raise ConfigError(
                "a flag names no path",
                where=flag,
                expected="a path",
                got="an empty text",
                hint="check the variable that was to hold it; '.' is this directory",
            )


def _refused_by_system(error: OSError, arguments: Sequence[str]) -> TidemillError:
    return TidemillError(
        "the operating system refuses",
        where=str(error.filename or "tidemill " + " ".join(arguments[:1])),
        expected="a file or resource that can be had",
        got=error.strerror or str(error) or type(error).__name__,
        hint="check the path, its permissions, the disk and the memory",
    )


def _missing_package(name: str, arguments: Sequence[str]) -> UnsupportedError:
    return UnsupportedError(
        f"a package that this command needs is not installed: {name}",
        where="tidemill " + " ".join(arguments[:1]),
        expected=f"{', '.join(OPTIONAL_PACKAGES)}, which only serving can do without",
        got=f"no {name} in {sys.prefix}",
        hint=f"pip install {name}, or run the command where it is installed",
    )


def _usage_error_class(bad_parameter: type[Exception]) -> type[Exception]:
    """Return the parser's base of usage errors, which typer has moved between packages."""
    for base in bad_parameter.__mro__:
        if base.__name__ == "UsageError":
            return base
    raise AssertionError("typer.BadParameter is not a UsageError")


def _report_usage(error: Any, arguments: Sequence[str]) -> int:
    context = getattr(error, "ctx", None)
    where = context.command_path if context is not None else "tidemill"
    text = error.format_message()
    if not text:
        return EXIT_USAGE  # the parser has printed the help already
    if getattr(error, "option_name", None):
        # The parser knows flags with dashes; help has them with underscores.
        text = re.sub(r"--[\w-]+", lambda flag: "--" + flag[0][2:].replace("-", "_"), text)
    # "Invalid value for '--x': reason" is the only form whose second half says what was expected.
    what, _, reason = text.partition(": ") if text.startswith("Invalid value") else (text, "", "")
    shown = TidemillError(
        what,
        where=where,
        expected=reason or "a command line that its help describes",
        got=" ".join(arguments) or "nothing",
        hint=f"{where} --help",
    )
    return report_error(shown, EXIT_USAGE)
