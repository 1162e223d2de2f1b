"""The short form of every soak; what each one holds the server to is said at its function."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.soak.hostile import FLAGS as HOSTILE_FLAGS
from tests.soak.hostile import hostile
from tests.soak.killing import killing
from tests.soak.mutants import mutants
from tests.soak.overload import FLAGS as OVERLOAD_FLAGS
from tests.soak.overload import overload
from tests.soak.overload import publish as publish_for_overload
from tests.soak.publishing import publishing
from tests.soak.replicas import replicas
from tests.soak.residency import flags as residency_flags
from tests.soak.residency import publish as publish_for_residency
from tests.soak.residency import residency
from tests.soak.server_process import Server, serving
from tests.soak.slow_readers import FLAGS as READER_FLAGS
from tests.soak.slow_readers import slow_readers
from tests.soak.slowloris import FLAGS as SILENT_FLAGS
from tests.soak.slowloris import OPEN_FILES, slowloris
from tests.soak.training_kills import training_kills
from tests.soak.world import World

pytestmark = pytest.mark.slow

SECONDS = 120.0
"""Deadline of each."""
SEED = 1


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """What these tests compute themselves is tiny; a team of threads only waits on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def small_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with little room for requests."""
    world = World(tmp_path_factory.mktemp("small"))
    publish_for_overload(world)
    with serving(world, [*OVERLOAD_FLAGS, *HOSTILE_FLAGS]) as server:
        yield server


@pytest.fixture(scope="module")
def tiered_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with many stacks on disk and little room for them on the device."""
    world = World(tmp_path_factory.mktemp("tiered"))
    publish_for_residency(world)
    with serving(world, [*residency_flags(world), *READER_FLAGS]) as server:
        yield server


def test_overload_with_disconnects_loses_nothing_and_leaves_nothing(small_server: Server) -> None:
    assert asyncio.run(overload(small_server, 200, SECONDS, SEED, print)).shown == []


def test_malformed_input_is_refused_with_an_error_object_and_the_server_lives(small_server: Server) -> None:
    assert asyncio.run(hostile(small_server, 100, SECONDS, SEED, print)).shown == []


def test_changed_stack_and_router_files_break_nothing_whether_refused_or_accepted(
    small_server: Server,
) -> None:
    outcome = asyncio.run(mutants(small_server, 40, SECONDS, SEED, print))
    assert outcome.shown == []
    assert any(name.endswith("201") for name in outcome.counts)


def test_with_room_for_few_stacks_answers_are_those_with_all_resident(tiered_server: Server) -> None:
    assert asyncio.run(residency(tiered_server, 80, SECONDS, SEED, print)).shown == []


def test_under_publications_each_answer_is_that_of_the_versions_it_names(tiered_server: Server) -> None:
    assert asyncio.run(publishing(tiered_server, 20, 5, SEED, print)).shown == []


def test_clients_that_do_not_read_neither_slow_others_nor_fill_memory(tiered_server: Server) -> None:
    assert asyncio.run(slow_readers(tiered_server, 4, SECONDS, SEED, print)).shown == []


def test_more_silent_clients_than_open_files_hold_up_nobody_nor_does_an_unread_stream_the_end(
    tmp_path: Path,
) -> None:
    with serving(World(tmp_path), SILENT_FLAGS, OPEN_FILES) as server:
        assert asyncio.run(slowloris(server, 10, SECONDS, SEED, print)).shown == []


def test_a_server_killed_amid_changes_comes_back_as_before_or_after_the_one_under_way(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    world = World(tmp_path_factory.mktemp("killed"))
    assert asyncio.run(killing(world, 2, SECONDS, SEED, print)).shown == []


def test_of_two_servers_on_one_registry_the_second_follows_and_no_answer_is_mixed(tmp_path: Path) -> None:
    assert replicas(World(tmp_path), 20, 5, SEED, print).shown == []


def test_a_training_killed_at_a_write_or_at_any_time_ends_in_the_same_bytes(tmp_path: Path) -> None:
    outcome = training_kills(tmp_path, 1, SECONDS, SEED, print, writes=2)
    assert outcome.failures == []
    assert outcome.counts == {"killed before a write": 2, "killed at a random time": 1}
