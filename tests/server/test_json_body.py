from __future__ import annotations

from typing import Any

import httpx2
import pytest

from server.errors import RequestRefused
from server.json_body import MAX_DEPTH, parse_json
from tests.server.conftest import error_of


def test_plain_json_is_read_as_it_is() -> None:
    body = '{"a": [1, 2.5, "é\\u00e9", null, true, {"b": "[[[{"}], "c": "\\ud83d\\ude00"}'.encode()
    assert parse_json(body) == {"a": [1, 2.5, "éé", None, True, {"b": "[[[{"}], "c": "😀"}


def test_depth_is_counted_outside_strings_only() -> None:
    assert parse_json(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)
    assert parse_json(b'"' + b"[" * 1000 + b'"') == "[" * 1000
    assert parse_json(b'["\\"[[", ' + b"[" * 31 + b"]" * 31 + b"]")
    assert len(parse_json(b"[" + b",".join([b"[]"] * 1000) + b"]")) == 1000


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b"[" * 100_000, "32 levels"),
        (b'{"a":' * 100_000, "32 levels"),
        (b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), "32 levels"),
        (b'{"a": 1, "a": 1}', "'a' occurs twice"),
        (b'{"b": {"x": 1, "y": 2, "x": 3}}', "'x' occurs twice"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": -Infinity}', "-Infinity"),
        (b"{", "not JSON"),
        (b"{'a': 1}", "not JSON"),
        (b"", "not JSON"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (b"\xff\xfe{\x00}\x00", "not UTF-8"),
        (b'\xef\xbb\xbf{"a": 1}', "not JSON"),
        (b"1" * 5000, "thousands of digits"),
        (b'{"a": "\\ud800"}', "surrogate"),
        (b'{"\\uDFFF": 1}', "surrogate"),
        (b'"a\nb"', "not JSON"),
    ],
)
def test_what_two_parsers_could_read_in_two_ways_is_refused(body: bytes, named: str) -> None:
    with pytest.raises(RequestRefused, match=named) as refused:
        parse_json(body)
    assert refused.value.status_code == 400
    assert len(refused.value.detail) < 200


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("application/json", 200),
        ("application/json; charset=utf-8", 200),
        ('Application/JSON;charset="UTF-8"', 200),
        ("application/json; charset=latin-1", 400),
        ("application/json; charset=utf-16", 400),
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
        ("multipart/form-data; boundary=x", 415),
        ("", 415),
    ],
)
async def test_hostile_21_charset_and_content_type(
    client: httpx2.AsyncClient, content_type: str, status: int
) -> None:
    body = b'{"model": "tiny", "prompt": "x"}'
    reply = await client.post("/v1/completions", content=body, headers={"Content-Type": content_type})
    if status == 200:
        assert reply.status_code == 200
    else:
        error_of(reply, status)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"", None),
        (b"[]", None),
        (b'"x"', None),
        (b"null", None),
        (b"{}", "model"),
        (b'{"a": 1, "a": 2}', None),
    ],
)
async def test_bodies_that_are_no_request_are_400(
    client: httpx2.AsyncClient, body: bytes, param: Any
) -> None:
    for path in ("/v1/completions", "/v1/chat/completions"):
        reply = await client.post(path, content=body, headers={"Content-Type": "application/json"})
        assert error_of(reply, 400)["param"] == param
