"""What a killed server leaves of an upload is removed by the next one, and nothing else is."""

from __future__ import annotations

from pathlib import Path

import pytest
from starlette.requests import Request
from starlette.types import Message

from server.settings import Settings
from server.uploads import PREFIX, received_file, remove_leftovers


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
