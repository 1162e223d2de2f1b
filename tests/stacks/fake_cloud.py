"""Just enough of Google's and of Azure's protocol for a registry: what each compares, and what it answers."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

Headers = Mapping[str, str]
Answer = tuple[int, dict[str, str], bytes]
"""Status, headers, content."""


@dataclass
class Stored:
    content: bytes
    generation: int
    metadata: dict[str, str]


class FakeCloud:
    """Attributes:
    asked: `METHOD path` and the conditions that came with it.
    """

    def __init__(self, scheme: str) -> None:
        self.scheme = scheme
        self.asked: list[tuple[str, dict[str, str]]] = []
        self._objects: dict[str, Stored] = {}
        self._count = 0
        self._lock = threading.Lock()

    def answer(
        self, method: str, url: str, headers: Headers, body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        parts = urlsplit(url)
        path = unquote(parts.path).removeprefix("/bucket").removeprefix("/")
        conditions = {name.lower(): value for name, value in headers.items() if "match" in name.lower()}
        if "comp=batch" in parts.query:
            return self._batch(headers["content-type"].partition("boundary=")[2], body)
        with self._lock:
            self.asked.append((f"{method} {path}", conditions))
            if not path:
                return 200, {}, self._list()
            found = self._objects.get(path)
            if method == "PUT":
                return self._put(path, found, conditions, headers, body)
            if found is None:
                return 404, {}, b""
            if method == "DELETE":
                del self._objects[path]
                return 202, {}, b""
            return 200, self._headers(found), found.content

    def _batch(self, boundary: str, body: bytes) -> Answer:
        """Azure's way to delete, be it one."""
        parts = []
        for number, path in enumerate(re.findall(rb"DELETE (\S+) HTTP", body)):
            status = self.answer("DELETE", path.decode(), {}, b"")[0]
            parts.append(
                f"--{boundary}\r\nContent-Type: application/http\r\nContent-ID: {number}\r\n\r\n"
                f"HTTP/1.1 {status} Fine\r\nx-ms-version: 2023-11-03\r\n\r\n"
            )
        return (
            202,
            {"Content-Type": f"multipart/mixed; boundary={boundary}"},
            f"{''.join(parts)}--{boundary}--\r\n".encode(),
        )

    def _put(
        self, path: str, found: Stored | None, conditions: dict[str, str], headers: Headers, body: bytes
    ) -> Answer:
        if self.scheme == "gs":
            wanted = conditions.get("x-goog-if-generation-match")
            if wanted is not None and int(wanted) != (found.generation if found else 0):
                return 412, {}, b"<Error><Code>PreconditionFailed</Code></Error>"
        else:
            if conditions.get("if-none-match") == "*" and found is not None:
                return 409, {}, b"<Error><Code>BlobAlreadyExists</Code></Error>"
            if "if-match" in conditions and (found is None or conditions["if-match"] != _e_tag(found)):
                return 412, {}, b"<Error><Code>ConditionNotMet</Code></Error>"
        self._count += 1
        kept = {k: v for k, v in headers.items() if k.lower().startswith(("x-goog-meta-", "x-ms-meta-"))}
        self._objects[path] = Stored(body, 1000 + self._count, kept)
        return 201 if self.scheme == "az" else 200, self._headers(self._objects[path]), b""

    def _headers(self, found: Stored) -> dict[str, str]:
        version = {"x-goog-generation": str(found.generation)} if self.scheme == "gs" else {}
        return {"ETag": _e_tag(found), "Last-Modified": formatdate(usegmt=True), **version, **found.metadata}

    def _list(self) -> bytes:
        entries = []
        for key, one in self._objects.items():
            size, tag = len(one.content), _e_tag(one)
            if self.scheme == "gs":
                moment = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())
                entries.append(
                    f"<Contents><Key>{key}</Key><Size>{size}</Size><LastModified>{moment}</LastModified>"
                    f"<ETag>{tag}</ETag></Contents>"
                )
            else:
                facts = f"<Last-Modified>{formatdate(usegmt=True)}</Last-Modified><Content-Length>{size}"
                facts += f"</Content-Length><Content-Type>x</Content-Type><Etag>{tag.strip(chr(34))}</Etag>"
                entries.append(f"<Blob><Name>{key}</Name><Properties>{facts}</Properties></Blob>")
        if self.scheme == "gs":
            return f"<ListBucketResult>{''.join(entries)}</ListBucketResult>".encode()
        return f"<EnumerationResults><Blobs>{''.join(entries)}</Blobs></EnumerationResults>".encode()


def _e_tag(found: Stored) -> str:
    return f'"0x{found.generation:X}"'


@contextmanager
def serving(cloud: FakeCloud) -> Iterator[str]:
    """URL at which it listens."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Keeps quiet."""

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, headers, content = cloud.answer(self.command, self.path, dict(self.headers), body)
            if "Range" in self.headers and status == 200:
                first, last = self.headers["Range"].removeprefix("bytes=").split("-")
                status, whole, content = 206, len(content), content[int(first) : int(last) + 1]
                headers["Content-Range"] = f"bytes {first}-{int(first) + len(content) - 1}/{whole}"
            self.send_response_only(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

    handler: Any = Handler
    for method in ("GET", "HEAD", "PUT", "POST", "DELETE"):
        setattr(handler, f"do_{method}", Handler.answer)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()
