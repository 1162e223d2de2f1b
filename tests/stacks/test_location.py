"""Where a registry is: only what an operator names plainly, and no secret in it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from brainstacks.errors import ConfigError
from brainstacks.stacks.blob_cache import BlobCache
from brainstacks.stacks.hub_store import HubStore
from brainstacks.stacks.local_store import LocalStore
from brainstacks.stacks.location import absent, open_store
from brainstacks.stacks.object_store import ObjectStore

GOOD = {
    "s3://bucket": ObjectStore,
    "s3://my.bucket-1/deep/er_prefix/": ObjectStore,
    "gs://bucket/prefix": ObjectStore,
    "az://container/prefix": ObjectStore,
    "hf://owner/name": HubStore,
    "hf://owner/name@v1.0": HubStore,
}
SECRET = "AKIA-is-a-secret"
BAD = [
    f"s3://{SECRET}:{SECRET}@bucket/prefix",
    f"s3://bucket/prefix?X-Amz-Signature={SECRET}",
    f"az://container/prefix?sig={SECRET}",
    f"gs://bucket/{SECRET}#fragment",
    f"hf://{SECRET}:x@owner/name",
    f"hf://owner/name?token={SECRET}",
    f"s3://bucket:{443}/{SECRET}",
    f"s3://bucket/../{SECRET}",
    f"s3://bucket//{SECRET}",
    f"s3://BUCKET/{SECRET}",
    f"s3://bucket/{SECRET}\n",
    f"s3:/bucket/{SECRET}",
    f"https://bucket.s3.amazonaws.com/{SECRET}",
    f"file:///{SECRET}",
]


@pytest.fixture(autouse=True)
def _account(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")


@pytest.mark.parametrize("url", GOOD)
def test_a_url_is_opened_without_a_word_to_the_network(url: str, tmp_path: Path) -> None:
    assert type(open_store(url, cache=BlobCache(tmp_path))) is GOOD[url]
    assert not absent(url)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("url", BAD)
def test_any_other_url_is_refused_and_not_repeated(url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        open_store(url, create=True, cache=BlobCache(tmp_path))
    assert SECRET not in str(refused.value)
    assert refused.value.__suppress_context__ or refused.value.__context__ is None


def test_what_is_no_url_is_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for root in (tmp_path / "a", str(tmp_path / "b"), "c", "d:e"):
        assert absent(root)
        assert type(open_store(root, create=True)) is LocalStore
        assert not absent(root)
    with pytest.raises(ConfigError, match="lost a slash; give its text"):
        open_store(Path("s3://bucket/prefix"), create=True)
    assert not (tmp_path / "s3:").exists()


def test_without_the_library_the_message_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("obstore", "obstore.store", "obstore.exceptions"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=r"pip install 'brainstacks\[object-stores\]'"):
        open_store("s3://bucket/prefix", cache=BlobCache(tmp_path))


def test_an_environment_that_is_of_no_use_is_named_without_its_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", SECRET)
    with pytest.raises(ConfigError, match="names the account in AZURE_STORAGE_ACCOUNT_NAME") as refused:
        open_store("az://container/prefix", cache=BlobCache(tmp_path))
    assert SECRET not in str(refused.value)
