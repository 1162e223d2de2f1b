"""An S3 server in this process (moto's), a bucket in it, and what can be done to it behind a store's back."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import pytest

ACCESS = {"AWS_ACCESS_KEY_ID": "access", "AWS_SECRET_ACCESS_KEY": "the-secret", "AWS_REGION": "us-east-1"}
ELSEWHERE = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT", "AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_SKIP_SIGNATURE")


class S3Server:
    """Attributes:
    url: of the server.
    bucket: one that is there, and is this server's own.
    """

    def __init__(self, url: str) -> None:
        import boto3

        self.url = url
        self.bucket = f"bucket-{uuid.uuid4().hex[:12]}"
        self.client: Any = boto3.client(
            "s3",
            endpoint_url=url,
            aws_access_key_id=ACCESS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=ACCESS["AWS_SECRET_ACCESS_KEY"],
            region_name=ACCESS["AWS_REGION"],
        )
        self.client.create_bucket(Bucket=self.bucket)

    def environment(self, url: str | None = None) -> Mapping[str, str]:
        """With which it is reached; at `url`, where something stands before it."""
        return {**ACCESS, "AWS_ENDPOINT_URL": url or self.url}

    def registry(self) -> str:
        """URL of a new, empty registry."""
        return f"s3://{self.bucket}/{uuid.uuid4().hex[:8]}/registry"

    def keys(self, registry: str) -> dict[str, bytes]:
        """All objects of a registry, without its prefix."""
        prefix = registry.split("/", 3)[3] + "/"
        found = self.client.list_objects_v2(Bucket=self.bucket, Prefix=prefix).get("Contents", [])
        return {one["Key"].removeprefix(prefix): self.read(one["Key"]) for one in found}

    def read(self, key: str) -> bytes:
        content: bytes = self.client.get_object(Bucket=self.bucket, Key=key)["Body"].read()
        return content

    def write(self, registry: str, key: str, content: bytes | None) -> None:
        """Replace an object by hand; None deletes it."""
        where = {"Bucket": self.bucket, "Key": f"{registry.split('/', 3)[3]}/{key}"}
        if content is None:
            self.client.delete_object(**where)
        else:
            self.client.put_object(**where, Body=content)


@contextmanager
def serving() -> Iterator[S3Server]:
    """One server for many tests: its start takes seconds."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    from moto.core.serialize import TimestampSerializer
    from moto.s3 import models
    from moto.server import ThreadedMotoServer

    # Lists then tell times in milliseconds, as Google's do. With S3's whole seconds, what is put and given up
    # within one is left to a later prune: `test_object_store` has that case.
    models.iso_8601_datetime_without_milliseconds_s3 = _in_milliseconds
    TimestampSerializer._timestamp_iso8601_zeroed = lambda _, moment: _in_milliseconds(moment)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield S3Server(f"http://{host}:{port}")
    finally:
        server.stop()


def _in_milliseconds(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").split("+")[0] + "Z"


def use(monkeypatch: pytest.MonkeyPatch, environment: Mapping[str, str]) -> None:
    """Have the environment say this alone of a cloud."""
    for name in ELSEWHERE:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
