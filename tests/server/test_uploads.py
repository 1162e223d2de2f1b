"""What a killed server leaves of an upload is removed by the next one, and nothing else is."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import pytest
from starlette.requests import Request
from starlette.types import Message

from brainstacks.errors import StorageUnwritable
from server.settings import Settings
from server.uploads import PREFIX, check_upload_dir, received_file, remove_leftovers


@pytest.fixture
def uploads(settings: Settings) -> Path:
    assert settings.upload_dir is not None
    return settings.upload_dir


def test_the_folder_of_a_dead_server_is_removed_with_what_it_holds(settings: Settings, uploads: Path) -> None:
    left = uploads / f"{PREFIX}abc"
    left.mkdir()
    (left / "upload.safetensors").write_bytes(b"x" * 100)
    remove_leftovers(settings)
    assert list(uploads.iterdir()) == []


def test_what_is_not_an_uploads_folder_stays(settings: Settings, uploads: Path) -> None:
    other = uploads / "mine"
    other.mkdir()
    (other / "thesis.txt").write_text("years")
    (uploads / f"{PREFIX}link").symlink_to(other)
    (uploads / f"{PREFIX}file").write_text("")
    remove_leftovers(settings)
    assert (other / "thesis.txt").read_text() == "years"
    assert {path.name for path in uploads.iterdir()} == {"mine", f"{PREFIX}link", f"{PREFIX}file"}


@pytest.mark.parametrize("why", [errno.ENOENT, errno.EROFS, errno.EACCES])
def test_a_directory_that_takes_no_uploads_is_refused_at_the_start_with_the_reason(
    settings: Settings, uploads: Path, monkeypatch: pytest.MonkeyPatch, why: int
) -> None:
    check_upload_dir(settings)
    assert list(uploads.iterdir()) == []

    def fail(*_: object, **__: object) -> None:
        raise OSError(why, os.strerror(why), "/secret/path")

    monkeypatch.setattr(tempfile, "mkdtemp", fail)
    with pytest.raises(StorageUnwritable, match=os.strerror(why)) as refused:
        check_upload_dir(settings)
    assert "--upload-dir" in refused.value.message
    assert "secret" not in refused.value.message


@pytest.mark.anyio
async def test_an_upload_that_a_running_server_holds_stays_until_it_is_done(
    settings: Settings, uploads: Path
) -> None:
    async def receive() -> Message:
        return {"type": "http.request", "body": b"a stack"}

    async with received_file(Request({"type": "http"}, receive), settings) as file:
        remove_leftovers(settings)
        assert file.read_bytes() == b"a stack"
    assert list(uploads.iterdir()) == []
