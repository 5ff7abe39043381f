"""Finds the logits processors that requests name.

A processor is a function of (request id, logits, token lists, None, None) that changes the logits
in place. In process it is registered and gets a name; a host imports `module:function` from its
own path. Only clients of this user's host can name one: no server's input does.
"""

from __future__ import annotations

import importlib
import itertools

from tidemill.base.errors import InvalidRequestError
from tidemill.runtime.choice_hooks import LogitsProcessor

REGISTERED = "registered:"
_name_to_processor: dict[str, LogitsProcessor] = {}
_next_number = itertools.count()


def register_processor(processor: LogitsProcessor) -> str:
    """Give a function of this process a name for requests."""
    for name, known in _name_to_processor.items():
        if known is processor:
            return name
    name = f"{REGISTERED}{next(_next_number)}"
    _name_to_processor[name] = processor
    return name


def find_processor(name: str) -> LogitsProcessor:
    """Return the processor of a name.

    Raises: InvalidRequestError when there is none.
    """
    if name in _name_to_processor:
        return _name_to_processor[name]
    module, _, function = name.partition(":")
    try:
        found = vars(importlib.import_module(module))[function]
    except (ImportError, KeyError, ValueError) as error:
        raise _unknown(name, f"{type(error).__name__}: {error}") from error
    if not callable(found):
        raise _unknown(name, f"a {type(found).__name__}")
    return found  # type: ignore[no-any-return]


def _unknown(name: str, got: str) -> InvalidRequestError:
    return InvalidRequestError(
        "the logits processor cannot be found",
        where=f"logits_processor {name!r}",
        expected="module:function, importable where the engine runs",
        got=got,
        hint="install the module where the engine host runs, and name it as module:function",
    )
