"""Every benchmark is one command that ends with a file and a table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from benchmarks import decode, first_start, libraries, nll, residency
from benchmarks.instruments import decode_case as names
from benchmarks.instruments import options
from brainstacks.errors import BrainstacksError, ConfigError
from tests.benchmarks.commands import BENCHMARKS
from tests.tiny import save_base
from training.runs.signals import Interrupted


def test_deterministic_compares_the_engine_with_itself_at_every_batch_size(run: Any) -> None:
    quick = ("--rounds", "1", "--tokens", "4", "--prompt-tokens", "5", "--batch-sizes", "1,3")
    document, _ = run("deterministic", *quick, registry=True)
    assert [case["batch_size"] for case in document["cases"]] == [1, 3]
    for case in document["cases"]:
        assert set(case["tokens_per_second"]) == {"as usual", "deterministic"}
        assert case["ratio"]["median"] > 0


@pytest.mark.parametrize("name", BENCHMARKS)
def test_help_says_what_is_measured_and_gives_a_quick_example(name: str) -> None:
    result = CliRunner().invoke(BENCHMARKS[name], ["--help"])
    assert result.exit_code == 0
    assert f"python -m benchmarks.{name} " in " ".join(result.output.split())


@pytest.mark.parametrize("text", ["", "1,x", "0", "4,-1"])
def test_a_list_that_is_none_is_refused(text: str) -> None:
    result = CliRunner().invoke(decode.app, ["--batch-sizes", text])
    assert result.exit_code == 2
    with pytest.raises(typer.BadParameter, match="is no list of things"):
        options.positive_list(text, "things")


def test_nll_compares_the_variants_on_the_same_records(run: Any, data: Path) -> None:
    document, output = run("nll", "--data", str(data), "--records", "3", "--variants", "nf4,none")
    assert document["records"] == {"chat": 3, "math": 3}
    nf4, none = document["variants"]
    assert (nf4["variant"], none["variant"]) == ("nf4", "none")
    for variant in (nf4, none):
        assert set(variant["nll"]) == {"chat", "math", nll.MEAN}
        assert variant["tokens_per_second"] > 0
    assert nf4["difference"][nll.MEAN] == {"nats": 0.0, "interval": [0.0, 0.0]}
    difference = none["difference"][nll.MEAN]
    assert difference["interval"][0] <= difference["nats"] <= difference["interval"][1]
    assert difference["nats"] == pytest.approx(none["nll"][nll.MEAN] - nf4["nll"][nll.MEAN])
    assert "nf4  |" in output


def test_contention_measures_every_batch_beside_every_number_of_processes(run: Any) -> None:
    quick = ("--rounds", "2", "--seconds", "0.1", "--processes", "0,1", "--batch-sizes", "1,2")
    document, output = run("contention", *quick)
    assert [(case["batch_size"], case["busy_processes"]) for case in document["cases"]] == [
        (1, 0), (1, 1), (2, 0), (2, 1)
    ]  # fmt: skip
    for case in document["cases"]:
        assert len(case["tokens_per_second"]["rounds"]) == 2
        assert case["of_undisturbed"]["min"] > 0
    assert document["cases"][0]["of_fair_share"]["median"] == 1.0
    assert "busy processes" in output


def test_a_shared_prompt_is_reused_whatever_answers_it(run: Any) -> None:
    document, output = run("shared_prompts", "--rounds", "1", "--lengths", "24", registry=True)
    mixes = ["base only", "routed, everywhere", "routed, response"]
    assert [case["mix"] for case in document["first_token"]] == mixes
    turns = document["conversation"]
    # The newest question, and the answer before it, were not there.
    assert turns["response"]["reused_share"]["min"] > 0.5
    assert turns["everywhere"]["reused_share"]["max"] == 0.0
    assert "share of the prompt reused" in output


def test_residency_serves_the_same_requests_with_and_without_room(run: Any) -> None:
    document, output = run(
        "residency",
        *("--domains", "6", "--budget", "2", "--requests", "8", "--concurrency", "2"),
        *("--tokens", "3", "--rounds", "2"),
    )
    found = document["contestants"]
    assert list(found) == [residency.ALL, residency.HOST, residency.DISK]
    assert found[residency.ALL]["hit_rate"]["min"] == 1.0
    assert found[residency.ALL]["load_ms"] == {}
    assert found[residency.HOST]["hit_rate"]["max"] <= 1.0
    assert set(found[residency.DISK]["load_ms"]) == {"disk"}
    assert document["device_stack_bytes"] > 0
    assert "room for 2" in output


@pytest.mark.parametrize(
    ("error", "status"), [(Interrupted("stopped at step 4"), 75), (ConfigError("seeds is empty"), 1)]
)
def test_a_command_that_is_stopped_or_refused_says_so_in_one_line(
    error: BrainstacksError, status: int
) -> None:
    def command(rounds: options.Rounds = 1) -> None:
        raise error

    result = CliRunner().invoke(options.application(command), ["--rounds", "2"])
    assert (result.exit_code, result.stderr) == (status, error.message + "\n")


@pytest.mark.slow
def test_first_start_starts_a_server_on_an_empty_cache_and_again_on_a_full_one(run: Any) -> None:
    document, output = run("first_start", "--rounds", "1")
    first, later, bare = (
        document["starts"][name] for name in (first_start.FIRST, first_start.LATER, first_start.BARE)
    )
    for start in (first, later, bare):
        assert start["wall_s"]["median"] > 0
        assert start["cpu_s"]["median"] > 0
    for start, most in ((first, 25.0), (later, 5.0)):
        assert start["target_cpu_s"] == pytest.approx(most + bare["cpu_s"]["median"])
        assert any("running on http" in line for line in start["log"])
    assert "Log of the first start" in output


@pytest.mark.slow
def test_hot_load_uploads_while_streams_run(run: Any, tmp_path: Path) -> None:
    # A context in which a stream is sure to outlast an upload, however fast the one and slow the other is.
    base = save_base(tmp_path / "long", max_position_embeddings=16384)
    quick = ("--streams", "2", "--rounds", "1", "--pieces", "4", "--tokens", "16000", "--rank", "2")
    document, output = run("hot_load", *quick, "--base", str(base))
    assert document["gap_before_ms_median"]["median"] > 0
    assert document["gap_during_ms_longest"]["median"] > 0
    assert document["stack_bytes"] > 0
    assert "Target: no gap beyond 3 median gaps" in output


@pytest.mark.slow
def test_http_load_reports_every_mix_without_errors(run: Any) -> None:
    document, _ = run("http_load", *("--clients", "3", "--requests", "2", "--tokens", "8", "--rounds", "1"))
    assert list(document["mixes"]) == ["base only", "identical", "distinct", "zipf"]
    for mix in document["mixes"].values():
        assert (mix["requests"], mix["errors"]) == (6, [])
        assert 0 < mix["first_token_ms_p50"]["median"] <= mix["first_token_ms_p99"]["median"]
        assert 0 < mix["inter_token_ms_p50"]["median"] <= mix["inter_token_ms_p99"]["median"]


def test_step_profile_says_where_a_steps_time_goes(run: Any) -> None:
    document, said = run(
        "step_profile", "--rounds", "2", "--tokens", "4", "--batch-sizes", "1,3", registry=True
    )
    cases = {(case["batch_size"], case["contestant"]): case["milliseconds"] for case in document["cases"]}
    assert {batch for batch, _ in cases} == {1, 3}
    for parts in cases.values():
        spent = {name: part["median"] for name, part in parts.items()}
        assert spent["q_proj, k_proj, v_proj"] > 0.0
        assert spent["head"] > 0.0
        assert spent["outside the compiled step"] > 0.0
    assert cases[1, names.BASE_ONLY]["gates"]["max"] == 0.0
    assert cases[1, names.ADJACENT]["gates"]["median"] > 0.0
    assert "Memory is read at" in said


def test_libraries_compares_one_linear_at_each_number_of_rows(tmp_path: Path) -> None:
    arguments = [
        "--rounds",
        "2",
        "--tokens",
        "1,3",
        "--d-in",
        "32",
        "--d-out",
        "16",
        "--output",
        str(tmp_path),
    ]
    result = CliRunner().invoke(libraries.app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    (path,) = tmp_path.glob("libraries-*.json")
    cases = json.loads(path.read_text())["cases"]
    assert {case["rows"] for case in cases} == {1, 3}
    assert libraries.FLOAT32 in {case["contestant"] for case in cases}
    assert all(case["microseconds"]["min"] > 0.0 for case in cases)
