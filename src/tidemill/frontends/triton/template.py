"""Fills the `${name}` placeholders of a TensorRT-LLM config.pbtxt template.

In: the template's text and `name:value` pairs. Out: the text with them filled; what is not given
stays, but for two names that have defaults.
"""

from __future__ import annotations

import re
from pathlib import Path
from string import Template

from tidemill.base.errors import ConfigError

DEFAULTS = {"max_queue_delay_microseconds": "0", "max_queue_size": "0"}
SEPARATOR = re.compile(r"(?<!\\),")


def parse_substitutions(text: str) -> dict[str, str]:
    """Read `name:value,name:value`; a comma of a value is written `\\,`.

    Raises: ConfigError for a pair without a colon.
    """
    pairs = [pair.replace("\\,", ",") for pair in SEPARATOR.split(text) if pair]
    broken = [pair for pair in pairs if ":" not in pair]
    if broken:
        raise ConfigError(
            "the substitutions of a template cannot be read",
            where=", ".join(broken),
            expected="name:value pairs with commas between",
            got=text,
            hint="a comma inside of a value is written \\,",
        )
    return dict(pair.split(":", 1) for pair in pairs)  # paths and URLs have colons of their own


def fill_template(path: Path, substitutions: dict[str, str]) -> str:
    """Return a template's text with its placeholders filled.

    Raises: ConfigError naming substitutions that the template does not have.
    """
    text = path.read_text("utf-8")
    known = {name for match in Template.pattern.finditer(text) if (name := match["braced"])}
    unknown = sorted(set(substitutions) - known)
    if unknown:
        raise ConfigError(
            "the template has no such placeholders",
            where=str(path),
            expected=", ".join(sorted(known)) or "none",
            got=", ".join(unknown),
            hint="the names between ${ and } in the file",
        )
    return Template(text).safe_substitute({**DEFAULTS, **substitutions})
