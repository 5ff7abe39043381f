"""Writes the edits of a step's rows where the compiled sample op finds them.

In: plan entries with a history. Out: four words for each of their rows in the step's inputs, and
the arrays behind the words, kept alive until the row is written again. Editors live as long as
their request's history. Rows of other requests cost nothing here.
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

from tidemill.base.debug import warn
from tidemill.device.cpu import Array, address_of
from tidemill.runtime.executor.logits_editor import LogitsEditor, RowEdits
from tidemill.runtime.token_history import TokenHistory


class EditsDesk:
    """The editors of all requests that have rules; `words` has a row for each logit row."""

    def __init__(self, words: Array, top_p: Array, row_elements: int) -> None:
        self._words, self._top_p, self._row_elements = words, top_p, row_elements
        self._editors: WeakKeyDictionary[TokenHistory, LogitsEditor] = WeakKeyDictionary()
        self.rows: dict[int, RowEdits] = {}

    def write(self, row: int, history: TokenHistory) -> str:
        """Write the edits of a row; returns how the request's own guide failed, if it did."""
        editor = self._editors.get(history)
        if editor is None:
            editor = self._editors[history] = LogitsEditor(history, self._row_elements)
        try:
            edits = editor.edits()
        except Exception as error:  # a guide is other people's code: it fails its request only
            warn("guided decoding", f"request {history.request.request_id}: {error!r}")
            self.rows.pop(row, None)
            self._words[row] = 0
            return f"guide: {type(error).__name__}: {error}"
        self.rows[row] = edits
        self._words[row] = (
            address_of(edits.records) if len(edits.records) else 0,
            len(edits.records),
            0 if edits.bias is None else address_of(edits.bias),
            0 if edits.mask is None else address_of(edits.mask),
        )
        self._top_p[row] = edits.top_p
        return ""

    def clear(self, row: int) -> None:
        """Take a row's edits back: its next request has none."""
        del self.rows[row]
        self._words[row] = 0
