"""A session's tokenizer: the one it was given, or its engine's own, read when it is first needed.

Reading takes longer than loading an engine, and whoever speaks in tokens needs none. Any thread may
ask. Knows nothing of requests.
"""

from __future__ import annotations

import threading
from pathlib import Path

from tidemill.text.tokenizer import Tokenizer

TOKENIZER_FILE = "tokenizer.json"


class EngineTokenizer:
    """Finds the tokenizer of one engine; without a directory, there is only the given one."""

    def __init__(self, given: Tokenizer | None, engine_dir: str) -> None:
        self._found, self._reading = given, threading.Lock()
        self._file = Path(engine_dir) / TOKENIZER_FILE if engine_dir else None

    def find(self) -> Tokenizer | None:
        """Return the tokenizer, if there is one.

        Raises: CheckpointError when it is broken, UnsupportedError when it cannot be streamed.
        """
        with self._reading:
            if self._found is None and self._file is not None and self._file.exists():
                self._found = Tokenizer.from_directory(self._file.parent)
        return self._found
