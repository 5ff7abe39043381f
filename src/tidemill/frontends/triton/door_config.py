"""What the front door lets in: bounds, keys and certificate, checked before anything starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tidemill.base.errors import ConfigError

if TYPE_CHECKING:
    import ssl

MEBIBYTE = 2**20


@dataclass(frozen=True)
class DoorConfig:
    """How requests are bounded and who may send them.

    `api_key_file` has one key a line; without it everybody may. Units: bytes of an unpacked body,
    levels of nested JSON.
    """

    max_body_bytes: int = 64 * MEBIBYTE
    max_json_depth: int = 64
    api_key_file: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None

    @property
    def scheme(self) -> str:
        return "https" if self.tls_cert else "http"

    def check(self) -> None:
        """Refuse what cannot be read.

        Raises: ConfigError naming the file and what is wrong with it.
        """
        read_api_keys(self)
        make_tls_context(self)


def read_api_keys(config: DoorConfig) -> tuple[str, ...]:
    """Return the keys that open the door; none when it is open to everybody.

    Raises: ConfigError when the file cannot be read, or holds no key or one that no header can.
    """
    if config.api_key_file is None:
        return ()
    try:
        text = config.api_key_file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _unusable_keys(config.api_key_file, str(error)) from error
    keys = tuple(line.strip() for line in text.splitlines() if line.strip())
    is_sendable = all(key.isascii() and key.isprintable() and " " not in key for key in keys)
    if not keys or not is_sendable:
        raise _unusable_keys(config.api_key_file, "no key" if not keys else "other characters")
    return keys


def make_tls_context(config: DoorConfig) -> ssl.SSLContext | None:
    """Return how connections are encrypted, None when they are not.

    Raises: ConfigError when one of the two files is missing or unusable.
    """
    if config.tls_cert is None and config.tls_key is None:
        return None
    import ssl  # 4 MB of a process, which plain HTTP goes without

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        if config.tls_cert is None or config.tls_key is None:
            raise ValueError("only one of the two")
        context.load_cert_chain(config.tls_cert, config.tls_key)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise ConfigError(
            "the certificate cannot be used",
            where=f"--tls_cert {config.tls_cert}, --tls_key {config.tls_key}",
            expected="a certificate chain and its private key, in PEM files",
            got=str(error),
            hint="openssl x509 -in CERT -noout -text shows what is in a file",
        ) from error
    return context


def _unusable_keys(path: Path, got: str) -> ConfigError:
    return ConfigError(
        "the API keys cannot be used",
        where=f"--api_key_file {path}",
        expected="one key a line, of printable ASCII characters without spaces",
        got=got,
        hint="openssl rand -hex 32 > FILE",
    )
