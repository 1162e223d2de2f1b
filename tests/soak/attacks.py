"""What a hostile client sends, drawn at random: /v1, /admin, and what is no HTTP at all."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tests.soak.raw_request import good_body, request
from tests.soak.server_process import Server

BODY_BYTES, UPLOAD_BYTES = 64 << 10, 1 << 20
"""The limits of the server that is attacked, on JSON bodies and on files."""


@dataclass(frozen=True)
class Attack:
    """Bytes to send.

    Attributes:
        kind: for the count of outcomes.
        http: it is a whole HTTP request, so an answer is due, and every refusal is an error object. Otherwise
            the server may also close the connection, or refuse in a word.
    """

    kind: str
    data: bytes
    http: bool = True


def draws(server: Server, count: int, seed: int) -> Iterator[Attack]:
    pick = random.Random(seed)
    kinds: list[Callable[[random.Random, Server], Attack]] = [
        *(_field, _field, _json, _json, _headers, _path, _domain, _upload, _length, _noise)
    ]
    for _ in range(count):
        yield pick.choice(kinds)(pick, server)


FIELDS = (
    "model", "prompt", "messages", "max_tokens", "n", "best_of", "temperature", "top_p", "top_k", "min_p",
    "stop", "seed", "logit_bias", "logprobs", "top_logprobs", "stream", "stream_options", "routing", "echo",
    "presence_penalty", "repetition_penalty", "min_tokens", "stop_token_ids", "suffix", "tokens", "nonsense",
    "response_start", "prompt_logprobs", "truncate_prompt_tokens",
)  # fmt: skip

VALUES: tuple[Any, ...] = (
    *(None, True, 0, -1, 5, 10**9, 10**18, 2**63, -(2**63) - 1, 10**40, 0.5, -0.0, 1e308, 2.5),
    *("", " ", "5", "\0", "<|im_end|>", "\u2028\ufeff\u202e", "\U0001f600" * 50, "a" * 5000),
    *([], [[]], [0], [-1], [10**9], [[1], "a"], ["a"] * 2000),
    *({}, {"a": 1}, {"10": 1e9}, {"include_usage": 1}, {"mode": "fixed"}, {"mode": "nobody"}),
    *({"mode": "fixed", "weights": {"../x": 1}}, {"mode": "fixed", "weights": {"chat": 10**9}}),
    *([{"role": "user"}], [{"role": "root", "content": "x"}]),
    [{"role": "user", "content": [{"type": "image_url"}]}],
)


def _field(pick: random.Random, server: Server) -> Attack:
    """Wrong values and names in an otherwise good body."""
    path, body = good_body(pick, server)
    for name in pick.sample(FIELDS, k=pick.choice((1, 1, 2))):
        body[name] = pick.choice(VALUES)
    return Attack("field", request(path, json.dumps(body).encode()))


def _json(pick: random.Random, server: Server) -> Attack:
    """What is no JSON, or not the only way to read it."""
    path, body = good_body(pick, server)
    text = json.dumps(body).encode()
    at = pick.randrange(len(text))
    flipped = bytes([text[at] ^ (1 << pick.randrange(8))])
    deep = 25_000
    made = pick.choice(
        [
            text[:at],
            text[:at] + flipped + text[at + 1 :],
            text[:at] + pick.randbytes(8) + text[at:],
            text + text,
            b"[" * deep + b"]" * deep,
            b'{"a":' * (deep // 3) + b"1" + b"}" * (deep // 3),
            text[:-1] + b',"model":"other"}',
            text[:-1]
            + b',"temperature":'
            + pick.choice((b"NaN", b"-Infinity", b"1e400", b"1" * 5000))
            + b"}",
            text.replace(b"hello", pick.choice((b"\\ud800", b"\xff\xfe", b"\\u0000", b"\x00", b"\xc0\xaf"))),
            b"\xef\xbb\xbf" + text,
            text.decode().encode("utf-16"),
            b"",
            b"null",
            b"[]",
            b'"text"',
        ]
    )
    return Attack("json", request(path, made))


def _headers(pick: random.Random, server: Server) -> Attack:
    """Headers too large, too many, or with another meaning than they should have."""
    path, body = good_body(pick, server)
    text = json.dumps(body).encode()
    admin = pick.choice(("", "Bearer", "Bearer x", "Basic eDp4", f"Bearer {server.admin_key} x", "\xff" * 9))
    odd: dict[str, str | bytes] = pick.choice(
        [
            {"X-Long": "a" * 40_000},
            {f"X-{number}": "b" * 50 for number in range(700)},
            {"Content-Type": pick.choice(("text/plain", "application/json; charset=latin-1", "", "\xe9"))},
            {"Content-Encoding": pick.choice(("gzip", "br", "deflate, gzip", "\xff"))},
            {"X-Request-Id": pick.choice(("a" * 500, "\xff\xfe", "../../x", "a b"))},
            {"Authorization": admin},
            {"Accept": "\xff", "Accept-Encoding": "gzip;q=nan", "Cookie": "a" * 9000},
            {"Host": pick.choice(("", "evil.example", "[::1]:99999", "a" * 3000))},
            {"Expect": "100-continue"},
            {"Upgrade": "h2c", "Connection": "Upgrade, close"},
        ]
    )
    if "Authorization" in odd:
        path = "/admin/registry/reload"
    return Attack("headers", request(path, text, headers=odd))


def _path(pick: random.Random, server: Server) -> Attack:
    """Paths that mean one thing to one reader and another to the next, and odd methods."""
    target = pick.choice(
        [
            *(
                "//admin/stacks",
                "/admin/../admin/stacks",
                "/%61dmin/stacks",
                "/admin%2fstacks",
                "/admin/%2e%2e/x",
            ),
            *("/v1/../admin/registry", "/ADMIN/stacks", "/admin;x/stacks", "/inspector/../../../etc/passwd"),
            *(
                "/inspector/%2e%2e/%2e%2e/pyproject.toml",
                "/inspector//etc/passwd",
                "/" + "a" * 5000,
                "/%00",
                "/%ff",
            ),
            *("/v1/models/%2e%2e", "/v1/models/" + "%41" * 2000, "/v1/routing/%00", "/?a=" + "b" * 5000, "*"),
            *(
                "/admin/requests?domain=%00&active=maybe",
                "/v1/routing/..%5c..",
                "http://evil.example/admin/stacks",
            ),
        ]
    )
    method = pick.choice(
        ("GET", "GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE", "X" * 50)
    )
    key = {"Authorization": f"Bearer {server.admin_key}"} if pick.random() < 0.3 else {}
    return Attack("path", request(target, method=method, headers=key))


def _domain(pick: random.Random, server: Server) -> Attack:
    """Domains that name a place on disk, or nothing, on every admin route, with the key."""
    domain = pick.choice(
        [
            *(
                "..",
                "%2e%2e",
                "%2e%2e%2fx",
                "%2fetc%2fpasswd",
                "%00",
                "x%00y",
                "a" * 5000,
                "%d0%b0dmin",
                "base",
            ),
            *(
                "ungated",
                "routed",
                "fixed",
                ".hidden",
                "-x",
                "CHAT",
                "a%20b",
                "%ff%fe",
                "chat%0d%0aX:y",
                "nobody",
            ),
        ]
    )
    method, suffix = pick.choice(
        [
            *(("GET", ""), ("DELETE", ""), ("DELETE", "?purge=maybe"), ("PUT", "")),
            *(("POST", "/pin"), ("POST", "/evict"), ("POST", "/load"), ("POST", "/activate")),
        ]
    )
    headers: dict[str, str | bytes] = {"Authorization": f"Bearer {server.admin_key}"}
    if pick.random() < 0.3:
        headers["If-Match"] = pick.choice(('"1e9"', "-1", "9" * 30, "\xb2", 'W/"1"', "zzz"))
    body = pick.choice((b'{"version": 1}', b'{"version": true}', b'{"version": 1e9}', b"{}", b""))
    target = f"/admin/stacks/{domain}{suffix}"
    return Attack("domain", request(target, body, method=method, headers=headers))


def _upload(pick: random.Random, server: Server) -> Attack:
    """Files that are no stack, or a stack with something changed."""
    key = {"Authorization": f"Bearer {server.admin_key}"}
    good = server.world.file("hostile", 10**9).path.read_bytes()
    size = int.from_bytes(good[:8], "little")
    header, data = good[8 : 8 + size], good[8 + size :]
    at = pick.randrange(len(good))
    entry = b'{"a":{"dtype":"F32","shape":[%s],"data_offsets":[%s]}}'
    headers = (
        b"[" * 9000,
        header[:-1] + b',"__metadata__":{}}',
        header.replace(b'"F32"', b'"I64"'),
        header.replace(b'"F32"', b'"F99"'),
        header.replace(b"rounds.0", b"rounds.7"),
        re.sub(rb'"data_offsets":\[\d+', b'"data_offsets":[0', header),
        re.sub(rb'"shape":\[', b'"shape":[1,', header),
        entry % (b"-1,-1", b"0,4"),
        entry % (b"4294967296,4294967296,4294967296", b"0,0"),
        entry % (b"1", b"0,99999999"),
        b"{}",
        b"null",
        b"\xff" * 64,
    )
    changed = pick.choice(headers)
    made = pick.choice(
        [
            *(
                b"",
                good[:7],
                good[:at],
                good + b"\0" * 9,
                good[:at] + bytes([good[at] ^ 0x80]) + good[at + 1 :],
            ),
            (2**63).to_bytes(8, "little") + good[8:],
            (200 << 20).to_bytes(8, "little") + good[8:],
            b"\x80\x04cposix\nsystem\n.",
            b"PK\x03\x04" + pick.randbytes(200),
            *([len(changed).to_bytes(8, "little") + changed + data] * 6),
        ]
    )
    target = pick.choice(("/admin/stacks/poetry", "/admin/router"))
    return Attack("upload", request(target, made, method="PUT", headers=key))


def _length(pick: random.Random, server: Server) -> Attack:
    """Bodies that are larger than they may be, or than they say."""
    path, body = good_body(pick, server)
    text = json.dumps(body).encode()
    chunked = {"Transfer-Encoding": "chunked"}
    head = request(path, headers=chunked).replace(b"Content-Length: 0\r\n", b"")
    long = b"%x\r\n" % (2 * BODY_BYTES) + b" " * (2 * BODY_BYTES) + b"\r\n0\r\n\r\n"
    claims = pick.choice(("-1", "1e3", "0x10", "9" * 30, "+5", "5, 6", "\xb2", ""))
    return pick.choice(
        [
            Attack("length", request(path, headers={"Content-Length": str(BODY_BYTES + 1)})),
            Attack("length", head + long, http=False),
            Attack("length", head + b"zz\r\n" + text, http=False),
            Attack("length", head + b"ffffffffffffffff1\r\n" + text, http=False),
            Attack("length", request(path, text, headers=chunked), http=False),
            Attack("length", request(path, text, headers={"Content-Length": claims}), http=False),
            Attack("length", request(path, text, headers={"Content-Length": str(len(text) + 9)}), http=False),
            Attack(
                "length",
                request(path, text + b"garbage", headers={"Content-Length": str(len(text))}),
                http=False,
            ),
        ]
    )


def _noise(pick: random.Random, server: Server) -> Attack:
    """What is no HTTP at all, or only almost."""
    path, body = good_body(pick, server)
    whole = request(path, json.dumps(body).encode())
    at = pick.randrange(len(whole))
    made = pick.choice(
        [
            pick.randbytes(pick.randint(1, 3000)),
            b"GET /\r\n\r\n",
            b"GET / HTTP/9.9\r\n\r\n",
            b"GET / HTTP/1.1\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + pick.randbytes(60),
            b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost : a\r\n folded\r\n\r\n",
            b"GET / HTTP/1.1\r\nX: a\x00b\r\nHost: a\r\n\r\n",
            b"\r\n" * 500,
            whole[:at],
            whole[:at] + pick.randbytes(4) + whole[at:],
        ]
    )
    return Attack("noise", made, http=False)
