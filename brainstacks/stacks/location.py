"""Where a registry is: a directory, a bucket, or a repository on the hub."""

from __future__ import annotations

import re
from pathlib import Path

from brainstacks.errors import ConfigError
from brainstacks.stacks.blob_cache import BlobCache
from brainstacks.stacks.bucket import Bucket
from brainstacks.stacks.bucket_url import SCHEMES, BucketUrl
from brainstacks.stacks.hub_store import HubStore, HubUrl
from brainstacks.stacks.local_store import LocalStore
from brainstacks.stacks.object_store import ObjectStore
from brainstacks.stacks.store import Store

HUB = "hf"
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):/")


def absent(root: str | Path) -> bool:
    """Whether `root` names a directory that is not there; of a URL only opening it tells."""
    return _SCHEME.match(str(root)) is None and not Path(root).exists()


def check(root: str | Path) -> str | None:
    """The scheme of a URL, None of a directory; nothing is opened.

    Raises:
        ConfigError: it is a URL of another form than a registry's, or holds more, such as a secret.
    """
    found = _SCHEME.match(str(root))
    if found is None:
        return None
    scheme = found[1]
    if isinstance(root, Path):
        raise ConfigError("the registry is a URL that was made a path, which has lost a slash; give its text")
    if scheme in SCHEMES:
        BucketUrl.of(root)
    elif scheme == HUB:
        HubUrl.of(root)
    else:
        known = ", ".join(f"{name}://" for name in (*SCHEMES, HUB))
        raise ConfigError(f"a registry is a directory or one of {known}; {scheme[:20]}: is none of them")
    return scheme


def open_store(root: str | Path, *, create: bool = False, cache: BlobCache | None = None) -> Store:
    """The store at `root`. Only an operator says it: no client of the server does.

    Args:
        root: a directory, or the text of a URL: `s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX`,
            `az://CONTAINER/PREFIX`, or, to read only, `hf://OWNER/NAME[@REVISION]`.
        create: make the directory when there is none.
        cache: of what is elsewhere; by default the user's.

    Raises:
        ConfigError: there is no such directory, or it is no such URL.
    """
    scheme = check(root)
    if scheme is None:
        return LocalStore(Path(root), create=create)
    if scheme == HUB:
        return HubStore(str(root), cache or BlobCache.of_user())
    return ObjectStore(Bucket.open(str(root)), cache or BlobCache.of_user())
