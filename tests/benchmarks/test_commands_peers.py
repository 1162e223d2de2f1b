"""Decode and prefill run beside their peers, or say which of them are left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from benchmarks import decode, prefill
from benchmarks.instruments import decode_case as names
from benchmarks.peers import available, llama_cpp


@pytest.fixture
def fake_llama_cpp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent / "fake_llama_cpp"))
    monkeypatch.setattr(available, "gguf_of", lambda base: Path("base.gguf"))
    installed = available.installed
    monkeypatch.setattr(available, "installed", lambda name: name == llama_cpp.PACKAGE or installed(name))


@pytest.mark.usefixtures("fake_llama_cpp")
def test_decode_compares_every_contestant_at_every_batch_size(run: Any) -> None:
    document, output = run(
        "decode",
        *("--rounds", "2", "--tokens", "6", "--prompt-tokens", "3", "--batch-sizes", "1,3"),
        registry=True,
    )
    one, three = document["cases"]
    assert (one["batch_size"], three["batch_size"]) == (1, 3)
    alone = {names.BASE_ONLY, names.TRAINED, names.ADJACENT, names.APART, *names.PLAIN}
    alone |= {names.SHUTTLE, names.SHUTTLE_NO_COPIES, names.LLAMA_CPP, names.LLAMA_CPP_FOUR}
    if available.installed("peft"):
        alone |= {names.PEFT_ONE, names.PEFT_FOUR}
    many = {names.REWEIGHTED, names.DISTINCT} | ({names.PEFT_MIXED} if available.installed("peft") else set())
    assert set(one["contestants"]) == alone
    assert set(three["contestants"]) == alone | many
    for measured in (*one["contestants"].values(), *three["contestants"].values()):
        assert len(measured["tokens_per_second"]["rounds"]) == 2
        assert measured["tokens_per_second"]["min"] > 0
    bounds = three["contestants"][names.DISTINCT]["tokens_per_second_bound"]
    assert 0 < bounds["all_experts"] < bounds["chosen_experts"]
    compared = {(c["ours"], c["theirs"]): c for c in one["comparisons"]}
    assert compared[names.BASE_ONLY, names.LLAMA_CPP]["target"] == 0.8
    assert compared[names.BASE_ONLY, names.LLAMA_CPP]["same_tokens"] is None, "it tells none"
    # In float32 both sides choose the same tokens where they run the same composition.
    assert compared[names.ADJACENT, names.SHUTTLE]["same_tokens"] == 6
    assert all(c["target"] is None for c in three["comparisons"]), "targets are set at 1 and 16"
    assert one["llama_cpp"] == "FAKE = 1"
    assert "Batch of 3" in output


def test_decode_goes_on_without_optional_peers_and_says_so(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(available, "installed", lambda name: False)
    document, output = run("decode", *("--rounds", "1", "--tokens", "3", "--batch-sizes", "1"))
    assert "PEFT is not installed" in output
    assert "llama.cpp is left out" in output
    assert "the trained registry is left out" in output  # the demo's, which is of another base
    (found,) = document["cases"]
    assert names.GENERATE_FLOAT32 in found["contestants"]
    assert not {names.PEFT_ONE, names.LLAMA_CPP, names.TRAINED} & set(found["contestants"])


def test_decode_leaves_out_the_peers_that_are_not_asked_for(run: Any) -> None:
    quick = ("--rounds", "1", "--tokens", "3", "--batch-sizes", "1")
    document, _ = run("decode", *quick, "--peers", "")
    (found,) = document["cases"]
    assert set(found["contestants"]) == {names.BASE_ONLY, names.ADJACENT, names.APART}
    assert document["settings"]["peers"] == []
    result = CliRunner().invoke(decode.app, ["--peers", "peft,vllm"])
    assert result.exit_code == 2
    assert "peft,vllm" in result.output


@pytest.mark.usefixtures("fake_llama_cpp")
def test_prefill_measures_every_length_and_mix(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefill, "TURN", 40)
    monkeypatch.setattr(prefill, "PEER_PROMPT", 70)
    document, output = run("prefill", *("--rounds", "2", "--lengths", "5,70"), registry=True)
    mixes = [prefill.BASE_ONLY, prefill.FOUR, prefill.TRAINED, prefill.ROUTED, prefill.LLAMA_CPP]
    assert [(each["prompt_tokens"], each["mix"]) for each in document["speed"]] == [
        (length, mix) for length in (5, 70) for mix in mixes
    ]
    assert [each["active_stacks"]["median"] for each in document["speed"][:3]] == [0.0, 4.0, 2.0]
    assert document["speed"][4]["first_token_ms"]["median"] == 5.0
    against = {(each["prompt_tokens"], each["mix"]): each for each in document["against_llama_cpp"]}
    assert {key for key, each in against.items() if each["target"]} == {(70, prefill.TRAINED)}
    assert set(against) == {(length, mix) for length in (5, 70) for mix in (mixes[0], mixes[2])}
    share = document["router"]["share_of_first_token"]
    assert len(share["rounds"]) == 2 * 5
    assert 0 < share["min"] <= share["max"] < 1
    assert document["router"]["target"] == 0.2
    assert len(document["second_turn"]["with_reuse_ms"]["rounds"]) == 2
    assert "Router's share" in output
