"""What stands between a client and a server, and lets through what a test wants: all, late, in part, or not.

It knows HTTP just well enough for an object store's client.
"""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


class Refuse(Exception):
    """Answer with a status and a code of the store's, and ask the server nothing."""

    def __init__(self, status: int, code: str) -> None:
        self.status, self.code = status, code


class Drop(Exception):
    """Close the connection without an answer."""


class Stall(Exception):
    """Answer never."""


class Cut(Exception):
    """Break the connection in the middle of the answer's body."""


Hook = Callable[[str], object]
"""Given `METHOD path?query`; raises one of the above."""


class FaultyProxy:
    """Attributes:
    url: where it listens.
    asked: every request, `METHOD path?query`, as it came.
    before, after: called before the server is asked, and before its answer is passed on.
    """

    def __init__(self, server: str) -> None:
        self.asked: list[str] = []
        self.ranges: list[str] = []
        self.before: Hook = lambda request: None
        self.after: Hook = lambda request: None
        self._target = urlsplit(server).netloc
        self._over = threading.Event()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                """Keeps quiet."""

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                proxy._pass_on(self, body)

        for method in ("GET", "HEAD", "PUT", "POST", "DELETE"):
            setattr(Handler, f"do_{method}", Handler.answer)
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    def vanish(self) -> None:
        """Nobody listens any more; connections that are open answer no more."""
        self.before = self._gone
        self._over.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def _gone(self, request: str) -> None:
        raise Drop

    def _pass_on(self, client: BaseHTTPRequestHandler, body: bytes) -> None:
        request = f"{client.command} {client.path}"
        self.asked.append(request)
        if "Range" in client.headers:
            self.ranges.append(client.headers["Range"])
        cut = False
        try:
            self.before(request)
            server = http.client.HTTPConnection(self._target)
            server.request(client.command, client.path, body, dict(client.headers.items()))
            answer = server.getresponse()
            status, headers, content = answer.status, answer.getheaders(), answer.read()
            server.close()
            try:
                self.after(request)
            except Cut:
                cut = True
        except Refuse as refusal:
            status, headers = refusal.status, []
            content = f"<Error><Code>{refusal.code}</Code></Error>".encode()
        except Stall:
            self._over.wait()
            client.close_connection = True
            return
        except Drop:
            client.close_connection = True
            return
        client.send_response_only(status)
        length = None
        for name, value in headers:
            if name.lower() == "content-length":
                length = value
            elif name.lower() not in ("transfer-encoding", "connection"):
                client.send_header(name, value)
        head = client.command == "HEAD"
        client.send_header("Content-Length", length if head and length else str(len(content)))
        client.end_headers()
        if not head:
            client.wfile.write(content[: len(content) // 2] if cut else content)
        if cut:
            client.close_connection = True


def once(method: str, part: str, fault: Exception) -> Hook:
    """Of the requests with this method and this in their path the first one alone has the fault."""
    left = [fault]

    def hook(request: str) -> None:
        if request.startswith(f"{method} ") and part in request and left:
            raise left.pop()

    return hook


def always(fault: Exception, part: str = "") -> Hook:
    """Of those with this in their path each one has."""

    def hook(request: str) -> None:
        if part in request:
            raise fault

    return hook


@contextmanager
def standing_before(server: str) -> Iterator[FaultyProxy]:
    proxy = FaultyProxy(server)
    try:
        yield proxy
    finally:
        if proxy.before != proxy._gone:
            proxy.vanish()
