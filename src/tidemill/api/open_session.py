"""Opens an engine in this process, on whatever CPU this is.

Apart from `retarget`, since the servers' side recompiles engines without running any.
"""

from __future__ import annotations

from pathlib import Path

from tidemill.api.retarget import ensure_native_code
from tidemill.host.config import SessionConfig
from tidemill.host.session import Session


def open_session(
    engine_dir: Path | str, config: SessionConfig, tokenizer_dir: Path | str | None = None
) -> Session:
    """Load an engine, recompiled for this CPU if need be.

    Raises: what `ensure_native_code` and `Session.open` raise.
    """
    ensure_native_code(engine_dir)
    return Session.open(engine_dir, config, tokenizer_dir)
