"""The family tree of errors; each class says who is at fault and what catching it buys.

TidemillError
|-- RequestError      one request is at fault; the loop lives on, no other request is touched
|   |-- InvalidRequestError   the request's own values are wrong
|   |-- QueueFullError        the server has no room now; try again later
|   `-- CancelledError        somebody withdrew the request
|-- SessionError      a loaded engine or its process is at fault; reload or restart it
|   |-- EngineFormatError     the file is not an engine this version reads
|   |-- EngineTargetError     the engine was built for another machine
|   |-- HostError             the engine host process died or does not answer
|   `-- ServerError           tritonserver could not be started or configured
`-- BuildError        nothing was written: artifacts are renamed into place only when complete
    |-- CheckpointError       the source files are missing, truncated or disagree with their config
    |-- UnsupportedError      well-formed, but outside of what this version can do
    |-- ConfigError           a flag or setting has a value that cannot be accepted
    `-- VerificationError     an engine's numbers differ from the checkpoint's own maths

Every message has four parts: what failed, where, expected against got, what to try.
"""

from __future__ import annotations


class TidemillError(Exception):
    """Base of all errors shown to users.

    `what` failed, `where` (file, tensor, layer, pass, op), `expected` against `got`, and a `hint`
    that says what to try. Parts that do not apply are left empty.
    """

    def __init__(
        self,
        what: str,
        *,
        where: str = "",
        expected: str = "",
        got: str = "",
        hint: str = "",
    ) -> None:
        self.what = what
        self.where = where
        self.expected = expected
        self.got = got
        self.hint = hint
        super().__init__(self.__str__())

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.expected or self.got:
            lines.append(f"  expected: {self.expected or '-'}; got: {self.got or '-'}")
        if self.hint:
            lines.append(f"  try: {self.hint}")
        return "\n".join(lines)


class RequestError(TidemillError):
    """One request failed; every other request goes on."""


class InvalidRequestError(RequestError):
    """The request's own values cannot be served."""


class QueueFullError(RequestError):
    """The queue is full; the same request may succeed later."""


class CancelledError(RequestError):
    """The request was withdrawn before it finished."""


class SessionError(TidemillError):
    """A loaded engine or its process failed; reload or restart it."""


class EngineFormatError(SessionError):
    """The file is not an engine that this version reads."""


class EngineTargetError(SessionError):
    """The engine's code needs a machine other than this one."""


class HostError(SessionError):
    """The engine host process died or does not answer."""


class ServerError(SessionError):
    """tritonserver could not be started or configured."""


class BuildError(TidemillError):
    """Convert, build or deploy failed; nothing was written."""


class CheckpointError(BuildError):
    """Source files are missing, truncated or disagree with their config."""


class UnsupportedError(BuildError):
    """Well-formed input outside of what this version can do."""


class ConfigError(BuildError):
    """A flag or setting has a value that cannot be accepted."""


class VerificationError(BuildError):
    """An engine's numbers differ from the checkpoint's own maths."""
