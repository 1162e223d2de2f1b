"""A file from a client, on disk for as long as it takes to publish it."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path

from anyio import open_file, to_thread
from starlette.requests import Request

from brainstacks.durable import storage_full, writable
from brainstacks.errors import InvalidArtifact
from server.settings import Settings

BLOCK = 1 << 20
"""Bytes that are gathered before they are written."""

PREFIX = "brainstacks-upload-"
"""Of a folder that holds one upload. Its server holds a lock on it, which ends with the server."""

_log = logging.getLogger(__name__)


@asynccontextmanager
async def received_file(request: Request, settings: Settings) -> AsyncIterator[Path]:
    """The request's body as a file, which is gone afterwards however this ends.

    Raises:
        InvalidArtifact: the body is empty.
        StorageFull: the disk is.
        StorageUnwritable: there is no place for uploads.
        RequestRefused: the body is over its cap or too slow (from `BodyLimit`).
        ClientDisconnect: the client left in the middle.
    """
    with _storing():
        held, folder = await to_thread.run_sync(_make_folder, settings)
    with held:  # not awaited: a cancelled request still cleans up
        path = folder / "upload.safetensors"
        with _storing():
            await _write(request, path)
        yield path


@contextmanager
def _storing() -> Iterator[None]:
    """Says of a disk that takes no upload why."""
    full = "The disk that holds uploads is full; free some space or set --upload-dir"
    with storage_full("an upload", full), writable("The directory for uploads (--upload-dir)"):
        yield


def check_upload_dir(settings: Settings) -> None:
    """Hold a folder there for a moment. Raises StorageFull, StorageUnwritable."""
    with _storing():
        held, _ = _make_folder(settings)
        held.close()


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


def _make_folder(settings: Settings) -> tuple[ExitStack, Path]:
    """A locked folder, and what removes it."""
    with ExitStack() as held:
        folder = held.enter_context(tempfile.TemporaryDirectory(prefix=PREFIX, dir=settings.upload_dir))
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        held.callback(os.close, lock)
        fcntl.flock(lock, fcntl.LOCK_EX)
        return held.pop_all(), Path(folder)


def remove_leftovers(settings: Settings) -> None:
    """Remove the uploads that servers were killed in; those of running servers are locked, and stay."""
    for folder in (settings.upload_dir or Path(tempfile.gettempdir())).glob(f"{PREFIX}*"):
        try:
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:  # another user's, or no folder: not ours to remove
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)
        except BlockingIOError:
            continue
        except OSError as error:
            _log.warning("an upload that was left in %s cannot be removed: %s", folder, error)
        else:
            _log.info("removed %s, which a server that was killed had left", folder)
        finally:
            os.close(lock)
