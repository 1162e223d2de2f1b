"""Stack and router files: what they mean survives a round trip, and what is unsound is refused by name."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from brainstacks.errors import IncompatibleArtifact, InvalidArtifact
from brainstacks.stacks.artifact import (
    DataSource,
    Predecessor,
    StackMetadata,
    check_base,
    check_domain_name,
    inspect_stack,
    read_stack_metadata,
)
from tests.stacks.files import (
    BASE,
    CONFIG,
    DIMS,
    pack,
    stack_metadata,
    stack_tensors,
    write_stack,
)

FULL = stack_metadata(
    null_space={"directions": 64, "samples": 400},
    predecessors=(Predecessor("code", "a" * 64),),
    data=(DataSource("set", "b" * 64, 12), DataSource("unknown")),
    hyperparameters={"lr": 1e-4, "schedule": ["cosine", None]},
    seed=7,
    losses=({"round": 0, "before": 2.0, "after": 1.5}, {"round": 1, "before": 1.5, "after": 1.25}),
    tool_versions={"torch": "2"},
    licence="MIT",
    description="Größe ✓",
)


def write(path: Path, tensors: Any, metadata: Any) -> Path:
    path.write_bytes(pack(tensors, metadata))
    return path


def stack_with(path: Path, **changes: Any) -> Path:
    """A stack file whose metadata document has `changes`; None there removes a field."""
    document = json.loads(stack_metadata().to_json())
    for name, value in changes.items():
        document[name] = value
        if value is ...:
            del document[name]
    return write(path, stack_tensors(), {"brainstacks": json.dumps(document)})


# names


@pytest.mark.parametrize("name", ["chat", "a", "0", "code-v2.1_x", "x" * 64])
def test_ordinary_names_are_allowed(name: str) -> None:
    check_domain_name(name)


HOSTILE_NAMES = [
    "", "../x", "..", "a..b", "%2e%2e", "/etc/passwd", "a/b", "a\\b", "a\0", "chat\n", "x" * 65, "x" * 5000,
    "Chat", "сhat", "ｃhat", "a b", "-a", ".a", "a:b", "base", "ungated", "routed", "fixed",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE_NAMES, ids=range(len(HOSTILE_NAMES)))
def test_hostile_names_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidArtifact) as caught:
        check_domain_name(name)
    assert caught.value.code == "invalid_domain"
    assert len(caught.value.message) < 400
    with pytest.raises(InvalidArtifact):
        inspect_stack(stack_with(tmp_path / "f", domain=name))


@given(st.text())
def test_every_allowed_name_is_one_plain_path_segment(name: str) -> None:
    try:
        check_domain_name(name)
    except InvalidArtifact:
        return
    assert Path("root", name).name == name
    assert name.isascii()


# metadata


def test_metadata_survives_a_round_trip() -> None:
    assert StackMetadata.from_json(FULL.to_json()) == FULL


def test_a_file_that_does_not_say_where_its_deltas_act_means_everywhere() -> None:
    """So were all files written once; a reader that knows of nothing else refuses the others."""
    assert "applies" not in json.loads(FULL.to_json())["config"]
    late = dataclasses.replace(FULL, config=dataclasses.replace(CONFIG, applies="response"))
    assert json.loads(late.to_json())["config"]["applies"] == "response"
    assert StackMetadata.from_json(late.to_json()) == late


@pytest.mark.parametrize("field", json.loads(FULL.to_json()))
def test_every_field_is_needed_and_typed(tmp_path: Path, field: str) -> None:
    with pytest.raises(InvalidArtifact, match=field):
        inspect_stack(stack_with(tmp_path / "f", **{field: ...}))
    with pytest.raises(InvalidArtifact):
        inspect_stack(stack_with(tmp_path / "f", **{field: [[True]]}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"surprise": 1}, "'surprise'"),
        ({"kind": "router"}, "is a 'router'"),
        ({"format_version": 2}, "format version 2"),
        ({"format_version": True}, "format_version"),
        ({"rounds": 0}, "rounds is 0"),
        ({"rounds": 10**9}, "rounds is 1000000000"),
        ({"rounds": 3}, "'rounds.2.layers.0.q_proj.A' is missing"),
        ({"rounds": 1}, "12 tensors too many"),
        ({"scaling": 3.0}, "scaling is 3.0"),
        ({"dims": {"q_proj": [4, 4]}}, "dims has"),
        ({"dims": {"q_proj": [4, 4], "v_proj": [4, 0]}}, "dims of v_proj"),
        ({"dims": {"q_proj": [4, 4], "v_proj": [4, 2, 1]}}, "dims of v_proj"),
        ({"dims": {"q_proj": [4, 4], "v_proj": [4, True]}}, "dims of v_proj"),
        ({"dims": {"q_proj": [4, 4], "v_proj": "42"}}, "dims of v_proj"),
        ({"config": {"rank": 2}}, "lacks the field 'alpha'"),
        ({"config": {**dataclasses.asdict(CONFIG), "rank": "2"}}, "rank"),
        ({"config": {**dataclasses.asdict(CONFIG), "alpha": "x"}}, "config"),
        ({"config": {**dataclasses.asdict(CONFIG), "projections": 3}}, "config"),
        ({"config": {**dataclasses.asdict(CONFIG), "dropout": 3}}, "dropout"),
        ({"config": {**dataclasses.asdict(CONFIG), "applies": "prompt"}}, "applies is 'prompt'"),
        ({"base": {"id": "x", "fingerprint": "y"}}, "architecture"),
        ({"base": {**dataclasses.asdict(BASE), "url": "http://x"}}, "'url'"),
        ({"predecessors": [{"domain": "../x", "digest": "a" * 64}]}, "cannot name a domain"),
        ({"predecessors": [{"domain": "x", "digest": "A" * 64}]}, "is no digest"),
        ({"data": [{"name": "x"}]}, "'digest'"),
        ({"losses": [1.0]}, "list of objects"),
    ],
)
def test_impossible_metadata_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArtifact, match=message):
        inspect_stack(stack_with(tmp_path / "f", **changes))


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (None, "single key"),
        ({}, "single key"),
        ({"brainstacks": "{}", "format": "pt"}, "single key"),
        ({"brainstacks": "{"}, "not a JSON document"),
        ({"brainstacks": "[]"}, "is an object"),
        ({"brainstacks": '{"kind": "stack", "kind": "stack"}'}, "twice"),
        ({"brainstacks": "[" * 100_000}, "nested deeper"),
        ({"brainstacks": '{"kind": "stack", "x": "\\ud800"}'}, "lone surrogate"),
        ({"brainstacks": " " * 2_000_000 + "{}"}, "characters"),
    ],
    ids=range(9),
)
def test_a_hostile_document_is_refused(tmp_path: Path, metadata: Any, message: str) -> None:
    with pytest.raises(InvalidArtifact, match=message):
        inspect_stack(write(tmp_path / "f", stack_tensors(), metadata))


def test_losses_that_are_not_finite_are_never_written() -> None:
    with pytest.raises(InvalidArtifact, match="no JSON form"):
        stack_metadata(losses=({"after": float("nan")},)).to_json()


# tensors


def test_a_sound_stack_is_described_completely(tmp_path: Path) -> None:
    file = inspect_stack(write_stack(tmp_path / "f"))
    content = (tmp_path / "f").read_bytes()
    assert (file.bytes, file.digest) == (len(content), hashlib.sha256(content).hexdigest())
    assert file.metadata == stack_metadata() == read_stack_metadata(tmp_path / "f")


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    for name in stack_tensors():
        tensors = stack_tensors()
        del tensors[name]
        with pytest.raises(InvalidArtifact, match=f"'{name}' is missing"):
            inspect_stack(write(tmp_path / "f", tensors, {"brainstacks": stack_metadata().to_json()}))


@pytest.mark.parametrize(
    "name", ["rounds.0.layers.2.q_proj.A", "rounds.0.layers.0.q_proj.noise", "", "x" * 5000]
)
def test_an_extra_tensor_is_named(tmp_path: Path, name: str) -> None:
    tensors = stack_tensors() | {name: ("F32", (1,), bytes(4))}
    with pytest.raises(InvalidArtifact, match="1 tensors too many"):
        inspect_stack(write(tmp_path / "f", tensors, {"brainstacks": stack_metadata().to_json()}))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("rounds.0.layers.0.q_proj.gate", (1, 4)),  # these would broadcast
        ("rounds.0.layers.0.q_proj.gate", (1,)),
        ("rounds.1.layers.1.v_proj.B", (1, 4)),
        ("rounds.0.layers.0.q_proj.A", (2, 2, 4)),
        ("rounds.1.layers.0.v_proj.B", (4, 2)),  # transposed
        ("rounds.0.layers.0.q_proj.A", (0, 4)),
    ],
)
def test_a_misshapen_tensor_is_named(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    tensors = stack_tensors() | {name: ("F32", shape, bytes(4 * int(np.prod(shape))))}
    with pytest.raises(InvalidArtifact, match=f"'{name}' has shape"):
        inspect_stack(write(tmp_path / "f", tensors, {"brainstacks": stack_metadata().to_json()}))


@pytest.mark.parametrize(("dtype", "size"), [("F64", 8), ("I32", 4), ("F16", 2)])
def test_another_dtype_is_refused(tmp_path: Path, dtype: str, size: int) -> None:
    name = "rounds.0.layers.1.q_proj.gate"
    tensors = stack_tensors() | {name: (dtype, (2, 4), bytes(8 * size))}
    with pytest.raises(InvalidArtifact, match=f"'{name}' has dtype {dtype}"):
        inspect_stack(write(tmp_path / "f", tensors, {"brainstacks": stack_metadata().to_json()}))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_refused(tmp_path: Path, value: float) -> None:
    name = "rounds.1.layers.1.v_proj.B"
    spoilt = np.zeros((2, 4), "<f4")
    spoilt[1, 3] = value
    tensors = stack_tensors() | {name: ("F32", (2, 4), spoilt.tobytes())}
    with pytest.raises(InvalidArtifact, match=f"'{name}' holds NaN"):
        inspect_stack(write(tmp_path / "f", tensors, {"brainstacks": stack_metadata().to_json()}))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_gives_a_sound_stack_or_a_refusal(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(write_stack(tmp_path / "f").read_bytes())
    position = data.draw(st.integers(0, 4000))
    content[position : position + 4] = data.draw(st.binary(min_size=1, max_size=4))
    (tmp_path / "f").write_bytes(content)
    try:
        file = inspect_stack(tmp_path / "f")
    except InvalidArtifact:
        return
    assert file.digest == hashlib.sha256(content).hexdigest()


# base


def test_a_stack_fits_its_own_base_only() -> None:
    metadata = stack_metadata()
    check_base(metadata, "f" * 64, DIMS | {"k_proj": (4, 2)}, 2)
    with pytest.raises(IncompatibleArtifact, match="fingerprint"):
        check_base(metadata, "e" * 64, DIMS, 2)
    with pytest.raises(IncompatibleArtifact, match="has 2 layers; the base in use has 3"):
        check_base(metadata, "f" * 64, DIMS, 3)
    with pytest.raises(IncompatibleArtifact, match="v_proj of the stack maps 4 -> 2"):
        check_base(metadata, "f" * 64, DIMS | {"v_proj": (4, 4)}, 2)
