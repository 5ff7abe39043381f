"""Shows what is inside an engine, without loading it.

In: an engine directory or file and the name of a view; out: text, or JSON where a machine reads
it. The views themselves are `engine.describe`'s. Needs no compiler and touches no weights.
"""

from __future__ import annotations

import json
from pathlib import Path

from tidemill.base.errors import ConfigError


def inspect_engine(engine_dir: Path | str, what: str = "summary", as_json: bool = False) -> str:
    """Return one view of an engine: summary, graph, plan, memory, tactics, sizes or config.

    Raises: ConfigError when there is no such view, EngineFormatError when there is no engine.
    """
    from tidemill.engine.describe import VIEWS
    from tidemill.engine.reader import EngineFile

    if what not in VIEWS:
        raise ConfigError(
            "an engine has no such view",
            where="--what of inspect",
            expected=", ".join(VIEWS),
            got=what,
            hint=f"tidemill inspect --engine_dir {engine_dir} --what summary",
        )
    with EngineFile.open(engine_dir) as engine:
        view = VIEWS[what]
        return json.dumps(view.facts(engine), indent=2) if as_json else view.text(engine)
