"""What to deploy, as one dataclass, and the checks that need no file.

In: a user's wishes. Out: refusals before anything is read. Knows the styles' names and no tensors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tidemill.base.errors import ConfigError
from tidemill.frontends.triton.repository import LINK_MODES
from tidemill.host.runtime_settings import read_session_settings

CLASSIC = "inflight_batcher_llm"
STYLES = ("text", "tokens", CLASSIC, "llmapi")
UNBATCHED_STYLES = ("tokens", "llmapi")
NAME_PATTERN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*")


@dataclass(frozen=True)
class DeployRequest:
    """What to deploy, where and how.

    The classic style's five models have names of their own, which `name`, if it is not empty,
    begins. `is_decoupled` unset means the style's own: tokens answer once, the others stream.
    Units: `max_batch_size` counts rows of one Triton request, unset means the engine's own; the
    tokens and llmapi styles have none. `exclude_input_in_output` is the default for requests that
    do not say; unary text answers begin with the prompt unless excluded, as in TensorRT-LLM.
    `settings` are parameters that say how the engine is run.
    """

    engine_dir: Path
    model_repository: Path
    name: str
    style: str = "text"
    is_decoupled: bool | None = None
    max_batch_size: int | None = None
    exclude_input_in_output: bool = False
    link: str = "copy"
    replace: bool = False
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def streams(self) -> bool:
        """Whether requests may have many responses."""
        return self.style != "tokens" if self.is_decoupled is None else self.is_decoupled

    def check(self) -> None:
        """Refuse settings that cannot be accepted.

        Raises: ConfigError naming every one.
        """
        read_session_settings(self.settings)
        faults = []
        if self.style not in STYLES:
            faults.append(("style", " or ".join(STYLES), self.style))
        if self.link not in LINK_MODES:
            faults.append(("link", " or ".join(LINK_MODES), self.link))
        is_nameless = self.style == CLASSIC and not self.name
        if not (is_nameless or NAME_PATTERN.fullmatch(self.name)):
            faults.append(("name", "letters, digits, '_', '-' and '.'", repr(self.name)))
        faults += self._batch_faults()
        if faults:
            raise ConfigError(
                "the deployment has settings that cannot be accepted",
                where=", ".join(name for name, _, _ in faults),
                expected="; ".join(f"{name} {expected}" for name, expected, _ in faults),
                got="; ".join(f"{name} {got}" for name, _, got in faults),
                hint="tidemill deploy --help",
            )

    def _batch_faults(self) -> list[tuple[str, str, str]]:
        size = self.max_batch_size
        if size is not None and not 0 <= size < 1 << 31:
            return [("max_batch_size", "from 0 to 2147483647", str(size))]
        if self.style in UNBATCHED_STYLES and size:
            reason = "prompts are packed end to end" if self.style == "tokens" else "one prompt"
            return [("max_batch_size", f"0 ({reason})", str(size))]
        if self.style == CLASSIC and size == 0:
            return [("max_batch_size", "1 or more", "0")]
        return []
