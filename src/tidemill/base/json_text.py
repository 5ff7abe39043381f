"""JSON as files of other people hold it: what cannot be carried further is refused as it is read.

In: bytes. Out: plain data. Beyond the grammar, refuses nesting that no file of ours needs, and text
with half a surrogate pair, which no UTF-8 file could take.
"""

from __future__ import annotations

import json
from typing import Any


def parse_json(data: bytes | str) -> Any:
    """Parse one document.

    Raises: ValueError that says what is wrong.
    """
    try:
        value = json.loads(data)
        if b"\\u" in (data.encode() if isinstance(data, str) else data):
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("nested deeper than any real file is") from None
    except UnicodeEncodeError as error:
        raise ValueError(f"text that is not Unicode: {error.reason}") from error
    return value
