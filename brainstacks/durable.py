"""Files that kills, power cuts and full disks leave as they were or as they should be, never in part.

    <name>                      visible: all of it is on disk
    .<name>.tmp-<32 hex>        being written; what is left of a writer that is gone, until a `sweep`

What is written is fsynced before the rename that makes it visible, and the directory after it.
"""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from brainstacks.errors import StorageFull, StorageUnwritable

NO_ROOM = (
    "no room to write {what} ({why}); what was saved before is intact: "
    "free some space or raise the quota, and give the same command again"
)

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_UNWRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR}


def atomic_write(path: Path, text: str) -> None:
    """Replace the file `path` by `text` (UTF-8).

    Raises:
        StorageFull: no room; the old one is as it was.
    """
    with storage_full(path.name), replacing(path) as temporary:
        write_file(temporary, [text.encode()])


@contextmanager
def replacing(path: Path, temporary: Path | None = None) -> Iterator[Path]:
    """Gives where to write and fsync a file, which takes the place of `path` when the `with` ends well.

    Args:
        temporary: where, in the same filesystem; beside `path` when None.
    """
    temporary = temporary or partial(path)
    try:
        yield temporary
        os.replace(temporary, path)
        fsync_directory(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def creating(path: Path) -> Iterator[Path]:
    """As `replacing`, but where there is a file `path` it stays.

    Raises:
        FileExistsError: there is one, perhaps only since the `with` began.
    """
    temporary = partial(path)
    try:
        yield temporary
        os.link(temporary, path)  # unlike a rename, it never replaces
        temporary.unlink()
        fsync_directory(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def creating_directory(path: Path) -> Iterator[Path]:
    """Gives a directory to write files to, which becomes `path` when the `with` ends well.

    Raises:
        FileExistsError: there is a `path`.
        StorageFull: no room.
    """
    temporary = partial(path)
    try:
        with storage_full(path.name):
            make_directory(temporary)
            yield temporary
            for file in temporary.iterdir():
                _fsync(file)
            fsync_directory(temporary)
            if path.exists():  # a rename would replace an empty one
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path.name)
            os.rename(temporary, path)
            fsync_directory(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_file(path: Path, chunks: Iterable[bytes | bytearray], mode: int = 0o644) -> None:
    """Make the file `path` and fsync it. Raises OSError, and may then leave a part of it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        for chunk in chunks:
            view = memoryview(chunk)
            while view:
                view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directory(path: Path) -> None:
    """Make `path` and what is missing above it, and fsync where they were entered."""
    if not path.is_dir():
        make_directory(path.parent)
        path.mkdir(exist_ok=True)  # another process may have made it meanwhile
        fsync_directory(path.parent)


def fsync_directory(path: Path) -> None:
    _fsync(path, os.O_DIRECTORY)


def _fsync(path: Path, kind: int = 0) -> None:
    descriptor = os.open(path, os.O_RDONLY | kind | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def partial(path: Path) -> Path:
    """A new name beside `path`, for what is being written or removed."""
    return path.with_name(f".{path.name}.tmp-{uuid.uuid4().hex}")


def sweep(parent: Path) -> None:
    """Remove the partial files and directories in `parent`, whose writers must be gone."""
    for stray in parent.glob(".*.tmp-" + "[0-9a-f]" * 32):
        if stray.is_dir():
            shutil.rmtree(stray)
        else:
            stray.unlink()


@contextmanager
def storage_full(what: str, message: str = NO_ROOM) -> Iterator[None]:
    """Turn an OSError for want of room (disk, quota, file size) into StorageFull.

    Args:
        message: in which `{what}` and `{why}` are filled in.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise StorageFull(message.format(what=what, why=error.strerror)) from error


@contextmanager
def writable(what: str) -> Iterator[None]:
    """Turn an OSError for want of permission or directory into StorageUnwritable; `what` is the place."""
    try:
        yield
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        raise StorageUnwritable(
            f"{what} cannot be written ({error.strerror}); make it a directory that this process may write to"
        ) from error
