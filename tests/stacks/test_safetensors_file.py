"""The container's reader refuses what the safetensors library, or its CVEs, let through."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from brainstacks.errors import InvalidArtifact
from brainstacks.stacks.artifact import sha256_file
from brainstacks.stacks.safetensors_file import (
    CHUNK_BYTES,
    MAX_HEADER_BYTES,
    MAX_MAGNITUDE,
    MAX_TENSORS,
    check_values,
    read_header,
)
from tests.stacks.files import container, pack

SOUND = pack({"a": ("F32", (2, 3), bytes(24)), "b": ("F16", (4,), bytes(8))}, {"key": "text"})


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def one_tensor(**changes: Any) -> bytes:
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes
    return container(json.dumps({"a": entry}).encode(), bytes(8))


def test_reads_what_the_library_writes(tmp_path: Path) -> None:
    tensors = {"x": torch.ones(3, 2), "y": torch.zeros(5, dtype=torch.bfloat16), "z": torch.tensor(1.0)}
    save_file(tensors, tmp_path / "f", metadata={"k": "v"})
    header = read_header(tmp_path / "f")
    assert {name: (info.dtype, info.shape) for name, info in header.tensors.items()} == {
        "x": ("F32", (3, 2)),
        "y": ("BF16", (5,)),
        "z": ("F32", ()),
    }
    assert header.metadata == {"k": "v"}
    assert header.size == os.path.getsize(tmp_path / "f")
    info = header.tensors["x"]
    content = (tmp_path / "f").read_bytes()[len(header.raw) :][info.start : info.end]
    assert np.frombuffer(content, "<f4").tolist() == [1.0] * 6


class Canary:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str, int]]:
        return (os.mkdir, (self.path, 0o755))


def test_refuses_a_pickle_and_never_runs_its_payload(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    payload = pickle.dumps(Canary(str(canary)))
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("archive/data.pkl", payload)
    for content in (payload, zipped.getvalue(), pickle.dumps(Canary(str(canary)), protocol=0)):
        with pytest.raises(InvalidArtifact):
            read_header(write(tmp_path / "f.safetensors", content))
    assert not canary.exists()


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 200 * 2**20, MAX_HEADER_BYTES + 1])
def test_refuses_a_header_length_over_the_cap_without_reading_it(tmp_path: Path, length: int) -> None:
    with pytest.raises(InvalidArtifact, match=f"claims {length} bytes; at most"):
        read_header(write(tmp_path / "f", length.to_bytes(8, "little") + b"{}"))


def test_refuses_a_file_that_is_empty_or_cut_short_anywhere(tmp_path: Path) -> None:
    for cut in range(len(SOUND)):
        with pytest.raises(InvalidArtifact):
            read_header(write(tmp_path / "f", SOUND[:cut]))


def test_refuses_trailing_bytes(tmp_path: Path) -> None:
    with pytest.raises(InvalidArtifact, match="trailing bytes"):
        read_header(write(tmp_path / "f", SOUND + b"\0"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": [-2]}, "sizes >= 0"),
        ({"shape": [2**62, 2**62, 0]}, "needs 0"),
        ({"shape": [2**61 + 2]}, "needs"),
        ({"shape": [2**64]}, "beyond 64 bits"),
        ({"shape": [2.0]}, "sizes >= 0"),
        ({"shape": [True, 2]}, "sizes >= 0"),
        ({"shape": [1] * 9}, "sizes >= 0"),
        ({"shape": "2"}, "a list"),
        ({"shape": [3]}, "needs 12"),
        ({"dtype": "F33"}, "dtype 'F33'"),
        ({"dtype": "F64"}, "needs 16"),
        ({"dtype": 4}, "a string"),
        ({"data_offsets": [8, 0]}, "data_offsets"),
        ({"data_offsets": [-8, 0]}, "data_offsets"),
        ({"data_offsets": [0, 8, 16]}, "data_offsets"),
        ({"data_offsets": [4, 12]}, "leaves a gap"),
        ({"extra": 1}, "'extra'"),
    ],
)
def test_refuses_impossible_tensors(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArtifact, match=message):
        read_header(write(tmp_path / "f", one_tensor(**changes)))


@pytest.mark.parametrize(
    ("offsets", "message"),
    [(([0, 8], [4, 12]), "overlaps"), (([0, 8], [0, 8]), "overlaps"), (([0, 8], [12, 20]), "leaves a gap")],
)
def test_refuses_overlap_and_gap(tmp_path: Path, offsets: tuple[list[int], list[int]], message: str) -> None:
    header = {
        name: {"dtype": "F32", "shape": [2], "data_offsets": pair}
        for name, pair in zip("ab", offsets, strict=True)
    }
    with pytest.raises(InvalidArtifact, match=message):
        read_header(write(tmp_path / "f", container(json.dumps(header).encode(), bytes(20))))


def test_accepts_any_order_of_names_when_the_bytes_are_tiled(tmp_path: Path) -> None:
    header = {
        "late": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]},
        "early": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
    }
    path = write(tmp_path / "f", container(json.dumps(header).encode(), bytes(8)))
    assert list(read_header(path).tensors) == ["early", "late"]


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"[]", "not a JSON object"),
        (b"{]", "not a JSON document"),
        (b'{"a": "\xff"}', "not a JSON document"),
        (b" {}", "not a JSON object"),
        (b'{"a": {}, "a": {}}', "'a' twice"),
        (b'{"__metadata__": {"k": "1", "k": "2"}}', "'k' twice"),
        (b'{"__metadata__": {"k": 1}}', "object of strings"),
        (b'{"__metadata__": []}', "object of strings"),
        (b'{"a": 1}', "is an object"),
        (b'{"a": {"dtype": NaN}}', "finite"),
        (b'{"a": {"dtype": 1e400}}', "finite"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not a JSON document"),
        (b'{"\\ud800": {}}', "lone surrogate"),
        (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested deeper"),
        (b'{"a":' + b"[" * 40 + b"]" * 40 + b"}", "nested deeper"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested deeper"),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else None,
)
def test_refuses_hostile_json(tmp_path: Path, header: bytes, message: str) -> None:
    with pytest.raises(InvalidArtifact, match=message):
        read_header(write(tmp_path / "f", container(header)))


def test_refuses_a_hundred_thousand_empty_tensors(tmp_path: Path) -> None:
    entry = '{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    header = "{" + ",".join(f'"{i}":{entry}' for i in range(100_000)) + "}"
    with pytest.raises(InvalidArtifact, match=f"100000 tensors; at most {MAX_TENSORS}"):
        read_header(write(tmp_path / "f", container(header.encode())))


def test_messages_stay_short_whatever_the_names(tmp_path: Path) -> None:
    name = "x" * 1_000_000
    with pytest.raises(InvalidArtifact) as caught:
        read_header(write(tmp_path / "f", container(json.dumps({name: {}}).encode())))
    assert len(caught.value.message) < 500


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, len(SOUND) - 1), replacement=st.binary(min_size=1, max_size=12))
def test_any_damage_gives_a_header_or_a_refusal(tmp_path: Path, position: int, replacement: bytes) -> None:
    content = SOUND[:position] + replacement + SOUND[position + len(replacement) :]
    path = write(tmp_path / "f", content)
    try:
        header = read_header(path)
    except InvalidArtifact:
        return
    ends = [info.end for info in header.tensors.values()]
    assert len(header.raw) + max(ends, default=0) == header.size == len(content)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets", "__metadata__", "a"]), inner)
    ),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(document=JSON)
def test_any_json_as_header_gives_a_header_or_a_refusal(tmp_path: Path, document: Any) -> None:
    path = write(tmp_path / "f", container(json.dumps(document).encode(), b""))
    try:
        header = read_header(path)
    except InvalidArtifact:
        return
    assert all(info.end == 0 for info in header.tensors.values())


@pytest.mark.parametrize(
    ("dtype", "kind"), [(torch.float32, "F32"), (torch.float16, "F16"), (torch.bfloat16, "BF16")]
)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_finds_one_value_that_is_not_finite(
    tmp_path: Path, dtype: torch.dtype, kind: str, value: float
) -> None:
    largest = torch.full((CHUNK_BYTES // dtype.itemsize + 7,), -MAX_MAGNITUDE, dtype=dtype)
    save_file(
        {"fine": largest, "small": torch.full((3,), torch.finfo(dtype).tiny, dtype=dtype)}, tmp_path / "f"
    )
    header = read_header(tmp_path / "f")
    assert header.tensors["fine"].dtype == kind
    data = bytearray(header.size - len(header.raw))
    assert check_values(tmp_path / "f", header) == sha256_file(tmp_path / "f")
    assert check_values(tmp_path / "f", header, data) == sha256_file(tmp_path / "f")
    assert header.raw + data == (tmp_path / "f").read_bytes()
    largest[-1] = value
    save_file({"fine": torch.zeros(4, dtype=dtype), "spoilt": largest}, tmp_path / "f")
    with pytest.raises(InvalidArtifact, match="'spoilt' holds NaN or infinity"):
        check_values(tmp_path / "f", read_header(tmp_path / "f"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_weight_beyond_the_bound_is_refused_with_its_value_and_the_bound(
    tmp_path: Path, dtype: torch.dtype, sign: int
) -> None:
    beyond = torch.nextafter(torch.tensor(MAX_MAGNITUDE, dtype=dtype), torch.tensor(torch.inf, dtype=dtype))
    for value in (beyond, torch.tensor(torch.finfo(dtype).max, dtype=dtype)):
        save_file({"fine": torch.zeros(4, dtype=dtype), "absurd": sign * value[None]}, tmp_path / "f")
        with pytest.raises(InvalidArtifact, match=r"'absurd' holds .* at most 16384") as refused:
            check_values(tmp_path / "f", read_header(tmp_path / "f"))
        assert f"{float(value):.3g}" in refused.value.message


def test_weights_are_floats(tmp_path: Path) -> None:
    path = write(tmp_path / "f", pack({"a": ("I32", (2,), bytes(8))}))
    with pytest.raises(InvalidArtifact, match="'a' has dtype I32"):
        check_values(path, read_header(path))


def test_a_file_that_shrinks_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "f", SOUND)
    header = read_header(path)
    write(path, SOUND[:-10])
    with pytest.raises(InvalidArtifact, match="changed while being read"):
        check_values(path, header)
