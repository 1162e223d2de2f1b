"""From a registry to a release, and from one on the hub to what serves it: the same bytes, to be read."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from huggingface_hub import errors as hub
from typer.testing import CliRunner

from brainstacks.cli import app
from brainstacks.errors import ConfigError, CorruptBlob, StorageUnwritable, Unavailable
from brainstacks.stacks.artifact import sha256_file
from brainstacks.stacks.blob_cache import BlobCache
from brainstacks.stacks.registry import Registry
from brainstacks.stacks.release import release
from brainstacks.stacks.verify import verify
from tests.stacks.files import flip, tree, write_router, write_stack
from tests.stacks.places import Place, spoil

URL = "hf://somebody/stacks"


class Hub:
    """Stands in for the library's download: a repository that is a directory here.

    Attributes:
        asked: (repository, revision, file) of each download.
        fault: raised in place of one.
    """

    def __init__(self, repository: Path) -> None:
        self.repository = repository
        self.asked: list[tuple[str, str | None, str]] = []
        self.fault: Exception | None = None

    def download(self, repo_id: str, filename: str, *, revision: str | None, local_dir: str) -> str:
        self.asked.append((repo_id, revision, filename))
        if self.fault is not None:
            raise self.fault
        if not (self.repository / filename).exists():
            raise hub.EntryNotFoundError(f"404: {filename}")
        target = Path(local_dir) / filename
        target.parent.mkdir(parents=True, exist_ok=True)
        return str(shutil.copyfile(self.repository / filename, target))


@pytest.fixture
def released(registry: Registry, tmp_path: Path) -> Path:
    """Two versions, of which the first serves, and a router."""
    registry.publish(write_stack(tmp_path / "a", licence="MIT", description="Talks"))
    registry.publish(write_stack(tmp_path / "b", seed=1, licence="MIT"))
    digest = registry.activate("chat", 1).digest
    registry.publish_router(write_router(tmp_path / "router", {"chat": digest}))
    release(registry, tmp_path / "release")
    return tmp_path / "release"


@pytest.fixture
def on_hub(released: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub(released)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", made.download)
    return made


def test_a_release_is_a_registry_of_what_serves_alone(registry: Registry, released: Path) -> None:
    made, whole = Registry(released), registry.snapshot()
    assert verify(made) == []
    assert made.generation == whole.generation
    assert [v.digest for v in made.snapshot().versions()] == [
        whole.domain("chat").current.digest,
        whole.routers().current.digest,
    ]
    assert sorted(path.name for path in (released / "blobs" / "sha256").iterdir()) == sorted(
        made.snapshot().referenced()
    )
    assert sorted(path.name for path in released.iterdir()) == ["README.md", "blobs", "manifest.json"]


def test_its_card_tells_the_hub_licence_base_and_tags_and_people_every_digest(released: Path) -> None:
    text = (released / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "license": "other",
        "license_name": "per-domain",
        "license_link": "README.md",
        "library_name": "brainstacks",
        "tags": ["brainstacks", "lora", "chat"],
    }
    for digest in Registry(released).snapshot().referenced():
        assert digest in body
    assert re.search(r"\| chat .* MIT \|", body)


def test_a_base_of_the_hub_is_named_and_a_licence_for_all_is_taken(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from brainstacks.base_identity import BaseRef

    monkeypatch.setattr("tests.stacks.files.BASE", BaseRef('some: "body"/base', "f" * 64, "LlamaForCausalLM"))
    registry.publish(write_stack(tmp_path / "a"))
    with pytest.raises(ConfigError, match=r"--licence 'chat=\.\.\.'"):
        release(registry, tmp_path / "release")
    assert not (tmp_path / "release").exists()
    release(registry, tmp_path / "release", licences={"chat": "CC0"}, licence="cc0-1.0")
    front = yaml.safe_load((tmp_path / "release" / "README.md").read_text().split("---\n")[1])
    assert (front["license"], front["base_model"]) == ("cc0-1.0", ['some: "body"/base'])
    assert "license_name" not in front


def test_nothing_is_replaced_and_nothing_damaged_or_empty_released(
    placed: Registry, place: Place, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="serves no stack"):
        release(placed, tmp_path / "release")
    digest = placed.publish(write_stack(tmp_path / "a", licence="MIT")).digest
    (tmp_path / "there").mkdir()
    with pytest.raises(ConfigError, match="is there already"):
        release(placed, tmp_path / "there")
    spoil(place, digest)
    with pytest.raises(CorruptBlob):
        release(placed, tmp_path / "release")
    assert not (tmp_path / "release").exists()


def test_the_command_releases(registry: Registry, tmp_path: Path) -> None:
    registry.publish(write_stack(tmp_path / "a"))
    command = ["release", "--registry", str(tmp_path / "registry"), str(tmp_path / "out"), "--json"]
    done = CliRunner().invoke(app, [*command, "--licence", "chat=MIT"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["generation"] == 1
    assert verify(Registry(tmp_path / "out")) == []
    assert CliRunner().invoke(app, [*command, "--licence", "chat"]).exit_code == 2


# the hub


def test_a_release_on_the_hub_is_served_and_what_came_does_not_come_again(
    on_hub: Hub, registry: Registry, tmp_path: Path
) -> None:
    opened = Registry(f"{URL}@v1", create=True, cache=BlobCache(tmp_path / "cache"))
    assert opened.snapshot().domain("chat").current.digest == sha256_file(tmp_path / "a")
    assert opened.total_bytes() == sum(v.bytes for v in opened.snapshot().versions())
    assert verify(opened) == []
    assert set(on_hub.asked) >= {("somebody/stacks", "v1", "manifest.json")}
    on_hub.asked.clear()
    assert opened.blob_path(sha256_file(tmp_path / "a")).read_bytes() == (tmp_path / "a").read_bytes()
    assert on_hub.asked == []


def test_it_is_followed_but_for_a_commit_which_never_changes(on_hub: Hub, tmp_path: Path) -> None:
    opened = Registry(URL, cache=BlobCache(tmp_path / "cache"))
    fixed = Registry(f"{URL}@{'0' * 40}", cache=BlobCache(tmp_path / "cache"))
    assert not opened.changed()
    manifest = on_hub.repository / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"generation": 4', '"generation": 9'))
    on_hub.asked.clear()
    assert not fixed.changed()
    assert on_hub.asked == []
    assert opened.changed()
    assert opened.reload().generation == 9


def test_nothing_is_written_there_and_the_message_says_how_a_release_is_made(
    on_hub: Hub, tmp_path: Path
) -> None:
    before = tree(on_hub.repository)
    opened = Registry(URL, cache=BlobCache(tmp_path / "cache"))
    changes: list[Callable[[], object]] = [
        lambda: opened.publish(tmp_path / "b"),
        lambda: opened.activate("chat", 1),
        lambda: opened.delete("chat", purge=True),
        lambda: opened.discard(["a" * 64]),
        opened.prune,
    ]
    for change in changes:
        with pytest.raises(StorageUnwritable, match=r"is read only: .* `brainstacks release`"):
            change()
    assert tree(on_hub.repository) == before


def test_what_is_damaged_or_missing_there_is_refused(on_hub: Hub, tmp_path: Path) -> None:
    opened = Registry(URL, cache=BlobCache(tmp_path / "cache"))
    stack, router = (version.digest for version in opened.snapshot().versions())
    flip(on_hub.repository / "blobs" / "sha256" / stack)
    (on_hub.repository / "blobs" / "sha256" / router).unlink()
    with pytest.raises(CorruptBlob, match="do not match"):
        opened.blob_path(stack)
    with pytest.raises(CorruptBlob, match="there are none"):
        opened.blob_path(router)
    (on_hub.repository / "manifest.json").unlink()
    with pytest.raises(ConfigError, match=r"no manifest\.json, so it is no registry"):
        Registry(URL, cache=BlobCache(tmp_path / "cache"))


def test_without_the_hub_what_came_serves_and_the_rest_is_said_to_be_out_of_reach(
    on_hub: Hub, tmp_path: Path
) -> None:
    cache = BlobCache(tmp_path / "cache")
    opened = Registry(URL, cache=cache)
    stack, router = (version.digest for version in opened.snapshot().versions())
    opened.blob_path(stack)
    for fault in (hub.LocalEntryNotFoundError("hf_secret"), OSError("hf_secret")):
        on_hub.fault = fault
        for call in (opened.reload, opened.changed, lambda: opened.blob_path(router)):
            with pytest.raises(Unavailable, match=f"{URL} cannot be reached") as told:
                call()
            assert "hf_secret" not in told.value.message
    again = Registry(URL, cache=cache, last_known=True)
    assert again.outdated is not None
    assert again.blob_path(stack).exists()


def test_a_repository_that_is_not_there_is_no_empty_registry(on_hub: Hub, tmp_path: Path) -> None:
    class Missing(hub.RepositoryNotFoundError):
        def __init__(self) -> None:
            OSError.__init__(self, "hf_secret")

    on_hub.fault = Missing()
    with pytest.raises(ConfigError, match=r"no such repository or revision, .* set HF_TOKEN") as told:
        Registry(URL, cache=BlobCache(tmp_path / "cache"))
    assert "hf_secret" not in told.value.message
