"""API keys: each has a name, and belongs to a tenant. Only digests are kept."""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr
from starlette.types import Scope

logger = logging.getLogger("brainstacks.server")

MAX_FILE_BYTES = 1 << 20

_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
_NAMED = re.compile(rf"(?:({_NAME})/)?({_NAME})=(?!=*$)(.+)")
"""`TENANT/NAME=KEY` or `NAME=KEY`. What only ends in `=` is a key that was padded so."""


@dataclass(frozen=True)
class Key:
    """Attributes:
    name: for people and logs.
    tenant: whose it is; the name, where the key is nobody else's.
    digest: sha256 of the secret.
    """

    name: str
    tenant: str
    digest: bytes


class Keys:
    """Those that open the inference routes.

    Args:
        options: `[[TENANT/]NAME=]KEY`, from the command line or the environment.
        file: holds one such key a line; `reload` reads it again.

    Raises:
        ValueError: as `collect`.
    """

    def __init__(self, options: Sequence[SecretStr], file: Path | None) -> None:
        self._options = options
        self._file = file
        self._keys = collect(options, file)

    @property
    def configured(self) -> bool:
        return bool(self._keys)

    def caller(self, scope: Scope) -> Key | None:
        """Whose key a request brings; None without a known one. Takes the same time whatever the guess."""
        guess = digest(bearer(scope))
        # A list, not a generator: every key is compared, so time does not tell which one matched.
        found = [key for key in self._keys if hmac.compare_digest(guess, key.digest)]
        return found[0] if found else None

    def reload(self) -> None:
        """Read the file again. Keys of a file that cannot be read stay, and the log says why."""
        try:
            self._keys = collect(self._options, self._file)
        except ValueError as error:
            logger.error("the API keys stay as they are: %s", error)
        else:
            logger.info("the API keys are now: %s", ", ".join(key.name for key in self._keys) or "none")


def collect(options: Iterable[SecretStr], file: Path | None) -> tuple[Key, ...]:
    """The keys of the options and of `file`.

    Raises:
        ValueError: a key could not be sent in a header, or stands there twice; two have one name; the file
            cannot be read or holds none. No message holds a secret.
    """
    keys = [parse(each.get_secret_value(), f"key-{at}") for at, each in enumerate(options, start=1)]
    if file is not None:
        keys += _of_file(file)
    seen: dict[object, Key] = {}
    for key in keys:
        if key.name in seen:
            raise ValueError(f"two keys are named {key.name!r}; every key has a name of its own")
        if key.digest in seen:
            raise ValueError(f"{seen[key.digest].name!r} and {key.name!r} are one key; give each its own")
        seen[key.name] = seen[key.digest] = key
    return tuple(keys)


def parse(text: str, otherwise: str) -> Key:
    """The key that `[[TENANT/]NAME=]KEY` means; one without a name is called `otherwise`."""
    named = _NAMED.fullmatch(text)
    tenant, name, secret = named.groups() if named else (None, otherwise, text)
    check_secret(secret)
    return Key(name, tenant or name, digest(secret.encode()))


def check_secret(text: str) -> None:
    """Refuse a key that no header could carry, or that guards nothing. Raises ValueError."""
    if not text or not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError("a key is one or more printable ASCII characters without spaces or commas")


def bearer(scope: Scope) -> bytes:
    """What a request sends as `Authorization: Bearer`; empty without, or with two of them."""
    values = [value for name, value in scope["headers"] if name == b"authorization"]
    scheme, _, given = values[0].partition(b" ") if len(values) == 1 else (b"", b"", b"")
    return bytes(given.strip()) if scheme.lower() == b"bearer" else b""


def digest(secret: bytes) -> bytes:
    return hashlib.sha256(secret).digest()


def _of_file(file: Path) -> Iterator[Key]:
    try:
        with file.open("rb") as opened:
            content = opened.read(MAX_FILE_BYTES + 1)
        lines = content.decode("ascii").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"the key file {file} cannot be read ({type(error).__name__}); it holds ASCII lines of "
            "[[TENANT/]NAME=]KEY"
        ) from None
    if len(content) > MAX_FILE_BYTES:
        raise ValueError(f"the key file {file} is larger than {MAX_FILE_BYTES} bytes")
    given = [(at, line.strip()) for at, line in enumerate(lines, start=1)]
    given = [(at, line) for at, line in given if line and not line.startswith("#")]
    if not given:
        raise ValueError(f"the key file {file} holds no key; it has one a line")
    for at, line in given:
        try:
            yield parse(line, f"line-{at}")
        except ValueError as error:
            raise ValueError(f"line {at} of the key file {file}: {error}") from None
