"""Chat templates: a conversation in, the prompt's text out, by the checkpoint's own jinja2 text.

Semantics are Hugging Face's: immutable sandbox, trimmed blocks, loop controls, the generation tag,
raise_exception, strftime_now and a tojson that leaves HTML characters alone. A template is foreign
code: it sees plain data only. Knows nothing of tokens. Imported when a template is first used,
because jinja2 costs a server 50 ms of its start.
Source: transformers utils/chat_template_utils.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
import jinja2.utils

from tidemill.base.errors import CheckpointError, InvalidRequestError


class ChatTemplate:
    """One compiled template; rendering it has no state."""

    def __init__(self, source: str) -> None:
        """Compile the template.

        Raises: CheckpointError if its syntax is wrong.
        """
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise CheckpointError(
                "the chat template cannot be read",
                where=f"chat template, line {error.lineno}",
                expected="jinja2 syntax as Hugging Face uses it",
                got=error.message or "",
                hint="mend chat_template in the checkpoint, or send plain text",
            ) from error

    def render(
        self, messages: Sequence[Mapping[str, object]], variables: Mapping[str, object]
    ) -> str:
        """Render a conversation.

        Raises: InvalidRequestError if the template refuses the messages or fails on them.
        """
        chat = [_plain_message(message, place) for place, message in enumerate(messages)]
        try:
            return self._template.render(messages=chat, **variables)
        # A template is a program of its own and may fail with any error of Python's.
        except Exception as error:
            roles = ", ".join(str(message.get("role")) for message in chat)
            raise InvalidRequestError(
                "the chat template refused the conversation",
                where="chat template",
                expected="messages in the order and form that the model was trained on",
                got=f"{type(error).__name__}: {error} (roles: {roles or 'none'})",
                hint="check the roles and their order, and that each message has a content",
            ) from error


class _GenerationTag(jinja2.ext.Extension):
    """Accept {% generation %} blocks, which only mark text for training."""

    tags = {"generation"}  # noqa: RUF012 -- the base class says set

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


class _DictMaker:
    """Stand in for dict, whose attributes would lead out of the sandbox."""

    def __call__(self, *args: Any, **fields: Any) -> dict[Any, Any]:
        return dict(*args, **fields)


def _environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_GenerationTag, jinja2.ext.loopcontrols],
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    environment.globals["dict"] = _DictMaker()
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _plain_message(message: object, place: int) -> dict[str, object]:
    if isinstance(message, Mapping) and isinstance(message.get("role"), str):
        return dict(message)
    raise InvalidRequestError(
        "a chat message cannot be used",
        where=f"messages[{place}]",
        expected='a mapping with a "role" and a "content"',
        got=repr(message)[:80],
        hint='send messages like {"role": "user", "content": "Hello"}',
    )
