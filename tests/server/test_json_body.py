from __future__ import annotations

import contextlib
import threading
import time
import tracemalloc
from collections.abc import Callable, Sequence
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server import errors, json_body
from server.errors import RequestRefused
from server.json_body import MAX_DEPTH, MAX_KEYS, MAX_VALUES, _marks, parse_json
from server.offences import Offence, offences
from tests.server.conftest import error_of


def test_plain_json_is_read_as_it_is() -> None:
    body = '{"a": [1, 2.5, "é\\u00e9", null, true, {"b": "[[[{"}], "c": "\\ud83d\\ude00"}'.encode()
    assert parse_json(body) == {"a": [1, 2.5, "éé", None, True, {"b": "[[[{"}], "c": "😀"}


def test_depth_is_counted_outside_strings_only() -> None:
    assert parse_json(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)
    assert parse_json(b'"' + b"[" * 1000 + b'"') == "[" * 1000
    assert parse_json(b'["\\"[[", ' + b"[" * 31 + b"]" * 31 + b"]")
    assert len(parse_json(b"[" + b",".join([b"[]"] * 1000) + b"]")) == 1000


def test_what_follows_an_escape_or_a_string_without_end_is_not_counted() -> None:
    assert b"".join(_marks(rb'{"a\"]": [1, "\\", "\\\\", {"b\\\"": "[,"}]}')) == b"{[,,,{}]}"
    assert b"".join(_marks(b'[[, "],[')) == b"[[,"
    assert b"".join(_marks(b'[ "a" "b" "c" [[')) == b"["


@given(st.text(alphabet='\\\\"a[,', max_size=24), st.integers(1, 9))
def test_blocks_do_not_part_an_escape(text: str, size: int) -> None:
    body = text.encode()
    whole = json_body._without_escapes(body)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_body, "BLOCK", size)
        assert json_body._without_escapes(body) == whole


HARD: dict[str, Callable[[int], bytes]] = {
    "escaped quotes without end": lambda size: b'{"a":' + b"[" * 40 + b'"' + b'\\"' * (size // 2),
    "escaped quotes, shallow": lambda size: b"[" * 30 + b"[]," * 9 + b'"' + b'\\"' * (size // 2),
    "backslashes without end": lambda size: b"[" * 33 + b'"' + b"\\" * size,
    "quotes alone": lambda size: b"[]," * 40 + b'"' * size,
    "brackets in a string": lambda size: b'["' + b"[]{}" * (size // 4) + b'"]',
    "empty strings": lambda size: b"[" + b'"",' * (size // 3) + b'""]',
    "lists": lambda size: b"[" + b"[]," * (size // 3) + b"1]",
    "integers": lambda size: b"[" + b"1," * (size // 2) + b"1]",
    "long integers": lambda size: b"[" + (b"1" * 4000 + b",") * (size // 4001) + b"1]",
    "a fraction": lambda size: b"0." + b"1" * size,
    "half pairs": lambda size: b'"' + b"\\ud83d\\ude00" * (size // 12) + b'"',
}


@pytest.mark.parametrize("kind", HARD)
def test_hostile_31_reading_takes_time_in_proportion_to_the_body(kind: str) -> None:
    """Quadratic time would grow 64-fold here."""

    def seconds(size: int) -> float:
        body, best = HARD[kind](size), float("inf")
        for _ in range(3):
            begin = time.thread_time()
            with contextlib.suppress(RequestRefused):
                parse_json(body)
            best = min(best, time.thread_time() - begin)
        return best

    assert seconds(256 << 10) < 24 * seconds(32 << 10) + 0.002


def test_hostile_31_checking_a_long_string_takes_little_memory() -> None:
    body = b'["' + b"[]{}" * (1 << 18) + b'"]'
    tracemalloc.start()
    try:
        assert parse_json(body)
        assert tracemalloc.get_traced_memory()[1] < 2.5 * len(body), "the decoded text, and its value"
    finally:
        tracemalloc.stop()


def test_the_most_values_are_read_and_one_more_is_refused() -> None:
    assert len(parse_json(b"[" + b"1," * (MAX_VALUES - 2) + b"1]")) == MAX_VALUES - 1
    with pytest.raises(RequestRefused, match=f"more than {MAX_VALUES} values"):
        parse_json(b"[" + b"1," * MAX_VALUES + b"1]")
    assert parse_json(b'["' + b"," * MAX_VALUES + b'"]'), "commas in a string are no values"


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
        (b"{" + b",".join(b'"%d":1' % i for i in range(MAX_KEYS + 1)) + b"}", "4097 keys"),
        (b"1" * 5000, "integer of 5000 digits"),
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


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": [-1] * 200_000}),
        ("/v1/completions", {"prompt": [[-1] * 1000] * 200}),
        ("/detokenize", {"tokens": [-1] * 200_000}),
        ("/v1/chat/completions", {"messages": [{}] * 100_000}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{}] * 100_000}]}),
    ],
)
async def test_hostile_31_a_list_of_wrong_items_is_refused_at_the_first(
    client: httpx2.AsyncClient, path: str, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []

    def counted(found: Sequence[Any]) -> list[Offence]:
        counts.append(len(found))
        return offences(found)

    monkeypatch.setattr(errors, "offences", counted)
    error_of(await client.post(path, json={"model": "tiny", **body}), 400)
    assert counts[0] <= 16, "errors that were made only to be thrown away"


@pytest.mark.anyio
@pytest.mark.parametrize(("size", "on_the_loop"), [(100, True), (json_body.LARGE + 1, False)])
async def test_large_bodies_are_read_off_the_event_loop(
    client: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch, size: int, on_the_loop: bool
) -> None:
    threads: list[int] = []

    def noted(body: bytes) -> Any:
        threads.append(threading.get_ident())
        return parse_json(body)

    monkeypatch.setattr(json_body, "parse_json", noted)
    await client.post("/tokenize", json={"prompt": "x" * size})
    assert [thread == threading.get_ident() for thread in threads] == [on_the_loop]
