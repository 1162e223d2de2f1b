"""A stored file on its way to a client."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Mapping
from typing import BinaryIO

from anyio import wrap_file
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from brainstacks.errors import CorruptBlob
from brainstacks.stacks.manifest import Version

BLOCK = 1 << 20
"""Bytes that are read at a time."""


class StoredFile(StreamingResponse):
    """The bytes of a published version, with their sha256 in `Repr-Digest` (RFC 9530).

    Args:
        file: open, at its beginning; closed when the reply has ended, however it ends.
        version: what it is.
        name: of its domain, or `router`.
        headers: further ones.
    """

    def __init__(self, file: BinaryIO, version: Version, name: str, headers: Mapping[str, str]) -> None:
        self._file = file
        self._version = version
        digest = base64.b64encode(bytes.fromhex(version.digest)).decode()
        super().__init__(
            self._blocks(),
            media_type="application/octet-stream",
            headers={
                "Content-Length": str(version.bytes),
                "Content-Disposition": f'attachment; filename="{name}-{version.version}.safetensors"',
                "Repr-Digest": f"sha-256=:{digest}:",
                **headers,
            },
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._file:
            await super().__call__(scope, receive, send)

    async def _blocks(self) -> AsyncIterator[bytes]:
        file = wrap_file(self._file)
        left = self._version.bytes
        while block := await file.read(BLOCK):
            left -= len(block)
            yield block
        if left:  # what was promised cannot be sent any more: the connection is closed
            raise CorruptBlob(f"{left} bytes of {self._version.digest} are missing; it was just changed")
