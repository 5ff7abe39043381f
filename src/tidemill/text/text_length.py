"""Says of texts that they are far too long, without turning all of them into tokens.

In: a text and how many tokens it may have, or the words that come beside a prompt. Out: whether
reading on makes sense. Tokenising takes a second for each megabyte or two, in which whoever does it
hears nobody.
"""

from __future__ import annotations

from collections.abc import Iterable

from tidemill.base.errors import InvalidRequestError
from tidemill.text.tokenizer import Tokenizer

# Of each token that is allowed; few texts have longer ones.
FIRST_LOOK_CHARACTERS = 16
MAX_SIDE_CHARACTERS = 1 << 18


def is_far_longer(tokenizer: Tokenizer, text: str, max_tokens: int) -> bool:
    """Say whether a text is far longer than so many tokens, in time that these would take.

    Twice as many must stand in a part of it: where a part is cut, tokens may differ a little.
    """
    length = FIRST_LOOK_CHARACTERS * max_tokens
    while length < len(text):
        if len(tokenizer.encode(text[:length], add_special_tokens=False)) > 2 * max_tokens:
            return True
        length *= 2
    return False


def check_side_texts(where: str, texts: Iterable[str]) -> None:
    """Refuse words and guides that would keep their reader from everybody else.

    Raises: InvalidRequestError.
    """
    num_characters = sum(map(len, texts))
    if num_characters > MAX_SIDE_CHARACTERS:
        raise InvalidRequestError(
            "a request's side texts are too long",
            where=where,
            expected=f"at most {MAX_SIDE_CHARACTERS} characters",
            got=str(num_characters),
            hint=f"shorten what {where} holds",
        )
