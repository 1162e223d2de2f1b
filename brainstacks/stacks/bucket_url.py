"""The URL of a registry in a bucket, and the library's client for it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from brainstacks.errors import ConfigError

if TYPE_CHECKING:
    from obstore.store import AzureStore, ClientConfig, GCSStore, MemoryStore, RetryConfig, S3Store

    Objects = S3Store | GCSStore | AzureStore | MemoryStore

SCHEMES = ("s3", "gs", "az")

CONNECTING, SILENCE, REPLY, PART = 5.0, 15.0, 120.0, 300.0
"""Seconds in which a connection, the next bytes of a reply, and all of it must have come, and a part of a
large object been sent."""
RETRIES, RETRYING, FIRST_PAUSE, LAST_PAUSE = 5, 45.0, 0.2, 5.0
"""How often, and for how many seconds at most, a request is made again that failed with 5xx, a broken
connection or, where it only reads, no answer; seconds between these, which double."""

_URL = re.compile(r"(s3|gs|az)://([a-z0-9][a-z0-9._-]{1,62})((?:/[A-Za-z0-9_=+-][A-Za-z0-9._=+-]*)*)/?")
_ENDPOINTS = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    "gs": ("GOOGLE_BASE_URL",),
    "az": ("AZURE_STORAGE_ENDPOINT",),
}
_EXTRA = "pip install 'brainstacks[object-stores]'"


@dataclass(frozen=True)
class BucketUrl:
    """`<scheme>://<bucket>/<prefix>`; on Azure the bucket is a container of the environment's account."""

    scheme: str
    bucket: str
    prefix: str

    @classmethod
    def of(cls, url: str) -> BucketUrl:
        """Raises ConfigError: it is none, or holds more."""
        found = _URL.fullmatch(url)
        if found is None:  # not repeated: there may be a secret in it
            raise ConfigError(
                "the registry's URL is no s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or az://CONTAINER/PREFIX of "
                "plain names; it holds no key, query or host: the cloud's environment variables give these"
            )
        return cls(found[1], found[2], found[3].strip("/"))

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}/{self.prefix}"

    def objects(self) -> tuple[Objects, Objects]:
        """Clients for what is read, and for what is sent.

        Raises:
            ConfigError: the library is not there, or the environment says something impossible.
        """
        return self._client(self._patience(SILENCE, REPLY)), self._client(self._patience(None, PART))

    @property
    def endpoint(self) -> str:
        """The server that the environment names in place of the cloud's own; empty without."""
        return next(filter(None, map(os.environ.get, _ENDPOINTS[self.scheme])), "")

    def _patience(self, silence: float | None, whole: float) -> ClientConfig:
        options: ClientConfig = {
            "connect_timeout": timedelta(seconds=CONNECTING),
            "timeout": timedelta(seconds=whole),
            "allow_http": self.endpoint.startswith("http://"),
        }
        if silence is not None:
            options["read_timeout"] = timedelta(seconds=silence)
        return options

    def _client(self, options: ClientConfig) -> Objects:
        try:
            from obstore.exceptions import BaseError
            from obstore.store import AzureStore, GCSStore, S3Store
        except ModuleNotFoundError:
            raise ConfigError(f"a registry in a bucket needs the library obstore: {_EXTRA}") from None
        kinds: dict[str, type[S3Store | GCSStore | AzureStore]]
        kinds = {"s3": S3Store, "gs": GCSStore, "az": AzureStore}
        kind: Any = kinds[self.scheme]  # their constructors are typed apart, and take the same
        try:
            client: Objects = kind(
                self.bucket, prefix=self.prefix or None, client_options=options, retry_config=_retries()
            )
            return client
        except (BaseError, ValueError):  # with what is set, which may be a secret
            raise ConfigError(
                f"{self}: the environment does not say how to reach it; on Azure it names the account in "
                "AZURE_STORAGE_ACCOUNT_NAME, elsewhere a variable of the cloud has an impossible value"
            ) from None


def _retries() -> RetryConfig:
    return {
        "max_retries": RETRIES,
        "retry_timeout": timedelta(seconds=RETRYING),
        "backoff": {
            "init_backoff": timedelta(seconds=FIRST_PAUSE),
            "max_backoff": timedelta(seconds=LAST_PAUSE),
        },
    }
