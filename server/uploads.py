"""A file from a client, on disk for as long as it takes to publish it."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from anyio import open_file, to_thread
from starlette.requests import Request

from brainstacks.errors import InvalidArtifact, StorageFull
from server.settings import Settings

BLOCK = 1 << 20
"""Bytes that are gathered before they are written."""


@asynccontextmanager
async def received_file(request: Request, settings: Settings) -> AsyncIterator[Path]:
    """The request's body as a file, which is gone afterwards however this ends.

    Raises:
        InvalidArtifact: the body is empty.
        StorageFull: the disk is.
        RequestRefused: the body is over its cap or too slow (from `BodyLimit`).
        ClientDisconnect: the client left in the middle.
    """
    folder = await to_thread.run_sync(_make_folder, settings)
    try:
        path = Path(folder.name) / "upload.safetensors"
        try:
            await _write(request, path)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StorageFull(
                    "The disk that holds uploads is full; free some space or set --upload-dir"
                ) from None
            raise
        yield path
    finally:
        folder.cleanup()  # not awaited: a cancelled request still cleans up


async def _write(request: Request, path: Path) -> None:
    block = bytearray()
    size = 0
    async with await open_file(path, "wb") as file:
        async for chunk in request.stream():
            block += chunk
            size += len(chunk)
            if len(block) >= BLOCK:
                await file.write(bytes(block))
                block.clear()
        await file.write(bytes(block))
    if not size:
        raise InvalidArtifact("The body is empty; send the file itself as the body")


def _make_folder(settings: Settings) -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="brainstacks-upload-", dir=settings.upload_dir)
