"""What `benchmarks.gpu` does where there is no GPU: it loses nothing, and its own code runs."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from typer.testing import CliRunner

from benchmarks import gpu
from benchmarks.gpu_sections import bases, kernel_tests, outline, peers
from benchmarks.gpu_sections.correctness import agree, identical
from benchmarks.gpu_sections.engines import Text
from benchmarks.gpu_sections.figures import ONE
from benchmarks.gpu_sections.findings import Findings, Mismatch
from benchmarks.gpu_sections.outline import Document, Group, Section
from benchmarks.gpu_sections.report import text
from benchmarks.gpu_sections.setting import Setting
from benchmarks.instruments.decode_case import PEFT_MIXED, PEFT_ONE
from benchmarks.instruments.results import Spread
from brainstacks.config import Backend
from tests.benchmarks.made_up_sections import crashes, hangs, works

pytestmark = pytest.mark.static_cuda


def document_of(path: Path) -> Document:
    found: Document = json.loads(path.read_text())
    return found


# --- nothing is lost -----------------------------------------------------------------------------


def test_what_fails_is_recorded_and_the_section_goes_on(tmp_path: Path) -> None:
    found = Findings(tmp_path / "found.json", "some", 60)
    with found.attempt("to divide"):
        found.figure("before", 1)
        raise ZeroDivisionError("by nothing")
    with found.attempt("to agree"):
        raise Mismatch("1 is not 2")
    with found.attempt("to add") as told:
        told.append("it is 3")
    broken, differing, sound = document_of(tmp_path / "found.json")["attempts"]
    assert broken["error"] == "ZeroDivisionError: by nothing"
    assert "raise ZeroDivisionError" in broken["traceback"]
    assert (differing["passed"], "traceback" in differing) == (False, False)
    assert (sound["passed"], sound["told"]) == (True, "it is 3")
    assert document_of(tmp_path / "found.json")["figures"] == {"before": 1}


def test_all_that_was_found_is_on_disk_before_the_next_thing_is_tried(tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    found = Findings(path, "some", 60)
    assert document_of(path)["state"] == "running"
    found.figure("speed", Spread.of([1.0, 3.0]))
    assert document_of(path)["figures"]["speed"]["median"] == 2.0
    found.table("Speeds", ["", ""], [["one", 1]])
    found.table("Speeds", ["", ""], [["one", 1], ["two", 2]])
    (table,) = document_of(path)["tables"]
    assert "two" in table["text"]


def test_nothing_is_begun_when_time_is_over_and_the_state_says_what_was_left_out(tmp_path: Path) -> None:
    def run(setting: Setting, found: Findings) -> None:
        with found.attempt("first"):
            now.append(61.0)
        with found.attempt("second"):
            raise AssertionError("there was no time for it")

    now = [0.0]
    found = Findings(tmp_path / "found.json", "some", 60, clock=lambda: now[-1])
    outline.measure(Section("some", "Some", run), Setting(tmp_path), found)
    document = document_of(tmp_path / "found.json")
    assert document["state"] == "left out from here on: second: its time is over"
    assert [one["what"] for one in document["attempts"]] == ["first"]
    assert outline.passed(document)


def test_a_section_that_raises_has_failed_with_its_traceback(tmp_path: Path) -> None:
    def run(setting: Setting, found: Findings) -> None:
        raise RuntimeError("no such kernel")

    found = Findings(tmp_path / "found.json", "some", 60)
    outline.measure(Section("some", "Some", run), Setting(tmp_path), found)
    document = document_of(tmp_path / "found.json")
    assert document["state"].startswith("failed\nTraceback")
    assert not outline.passed(document)
    said = text([Section("some", "Some", run), Section("later", "Later", run)], {"some": document}, "a note")
    assert "no such kernel" in said
    assert "not begun" in said


@pytest.mark.slow
def test_a_process_that_hangs_or_crashes_takes_no_other_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signs = {"hangs.stuck": "in hangs", "crashes.json": '"before": 2', "works.json": '"done"'}

    begin = time.time()

    def much_later_once_all_is_said() -> float:
        said = {path.name: path.read_text() for path in tmp_path.iterdir() if path.name in signs}
        over = all(sign in said.get(name, "") for name, sign in signs.items())
        return begin + (1000 if over else 0)

    monkeypatch.setattr(outline, "time", much_later_once_all_is_said)
    three = Group(
        1, (Section("hangs", "", hangs), Section("crashes", "", crashes), Section("works", "", works))
    )
    told: list[set[str]] = []
    found = outline.run([three], Setting(tmp_path), 0.1, lambda now: told.append(set(now)))
    assert found["hangs"]["figures"] == {"before": 1}
    assert "in hangs" in found["hangs"]["state"], "where it was"
    assert found["crashes"]["figures"] == {"before": 2}
    assert "its process ended with 77" in found["crashes"]["state"]
    assert (found["works"]["state"], found["works"]["figures"]) == ("done", {"all": 3})
    assert [outline.passed(found[name]) for name in ("hangs", "crashes", "works")] == [False, False, True]
    assert told[-1] == {"hangs", "crashes", "works"}


def test_without_a_gpu_the_command_says_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = CliRunner().invoke(gpu.app, ["--output", str(tmp_path)])
    assert result.exit_code == 2
    assert "no CUDA device is available" in " ".join(result.output.split())
    assert not list(tmp_path.iterdir())


# --- texts that agree ----------------------------------------------------------------------------

CPU = Text((5, 6, 7), (-0.5, -0.25, -0.125), (1.0, 1e-4, 2.0))


def test_texts_may_part_at_a_tie_and_nowhere_else() -> None:
    parted = Text((5, 9, 1), (-0.5, -3.0, -3.0), (1.0, 2e-4, 4.0))
    assert agree([parted], [CPU], 1e-3) == "within 3.0e-04 nats; 1.0e-03 are allowed; 1 rows parted at a tie"
    with pytest.raises(Mismatch, match="row 0 is 2 nats apart"):
        agree([Text((4, 6, 7), CPU.logprobs, CPU.leads)], [CPU], 1e-3)


def test_texts_that_agree_have_close_log_probabilities() -> None:
    close = Text(CPU.ids, (-0.5, -0.2505, -0.125), CPU.leads)
    assert agree([close], [CPU], 1e-3).startswith("within 5.0e-04 nats")
    with pytest.raises(Mismatch, match=r"row 1 is 0\.0005 nats apart, 1\.0e-04 it may be"):
        agree([CPU, close], [CPU, CPU], 1e-4)


def test_one_bit_is_enough_to_be_no_longer_identical() -> None:
    assert identical([CPU], [CPU]) == "3 tokens"
    with pytest.raises(Mismatch, match="row 0 differs from token 1 on"):
        identical([Text(CPU.ids, (-0.5, -0.25000000000000006, -0.125), CPU.leads)], [CPU])


# --- bases ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_a_base_of_random_weights_is_quantised_as_a_loaded_one(tmp_path: Path, family: str) -> None:
    config = bases.tiny_config(Setting(tmp_path), family)
    plain, nf4 = (
        bases.random_base(family, config, "cpu", torch.float32, quantization, seed=0)
        for quantization in ("none", "nf4")
    )
    for site, found in nf4.sites.items():
        weight: Any = found.module.weight
        assert (weight.quant_state.quant_type, weight.quant_state.nested) == ("nf4", True)
        values: Any = dequantize_4bit(weight, weight.quant_state)
        wanted: Any = plain.sites[site].module.weight
        assert 0.05 < float((values - wanted).norm() / wanted.norm()) < 0.15
    ids = torch.arange(12)[None]
    expected = plain.model(ids).logits
    assert float((nf4.model(ids).logits - expected).norm() / expected.norm()) < 0.5


# --- a rehearsal ---------------------------------------------------------------------------------

QUICK: dict[str, Backend] = {"families": "cuda"}
"""What is looked at; elsewhere PyTorch computes, as the interpreter takes most of the time."""
ALL = {section.name: section for group in gpu.GROUPS for section in group.sections}


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are compiled here, for CUDA tensors")
@pytest.mark.parametrize("name", [name for name in gpu.NAMES if name not in ("tests", "peers")])
def test_every_section_runs_to_its_end_on_the_cpu(tmp_path: Path, name: str) -> None:
    document = rehearsed(tmp_path, name)
    assert len(document["attempts"]) >= 2
    assert str(tmp_path) not in json.dumps(document)


@pytest.mark.slow
def test_the_project_s_tests_are_run_and_what_fails_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_tests, "ROOT", tmp_path)
    file = tmp_path / "tests" / "gpu_kernels" / "test_kv_store.py"
    file.parent.mkdir(parents=True)
    file.write_text("def test_a() -> None:\n    pass\n\ndef test_b() -> None:\n    assert 1 == 2\n")
    found = Findings(tmp_path / "found.json", "tests", 600)
    outline.measure(ALL["tests"], Setting(tmp_path, rehearse=True), found)
    (attempt,) = found.document["attempts"]
    assert not attempt["passed"]
    assert "assert 1 == 2" in attempt["error"]
    assert "1 failed, 1 passed" in attempt["error"]


@pytest.mark.slow
@pytest.mark.parametrize("there", ["neither", "both"])
def test_peers_are_compared_with_where_they_are_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], there: str
) -> None:
    monkeypatch.setattr(peers, "installed", lambda package: there == "both")
    pytest.importorskip("peft")
    for module, content in made_up_vllm().items():
        monkeypatch.setitem(sys.modules, module, content)
    document = rehearsed(tmp_path, "peers")
    if there == "neither":
        assert document["figures"] == {"PEFT": "not installed", "vLLM": "not installed"}
        assert "vLLM is not installed" in capsys.readouterr().out
        return
    told = document["figures"]["decode beside vLLM, 2 rows"]
    assert set(told["tokens_per_second"]) == {ONE, peers.VLLM_ONE}
    assert set(document["figures"]["decode beside PEFT, 2 rows"]["ours_over"]) == {PEFT_ONE, PEFT_MIXED}


def rehearsed(directory: Path, name: str) -> Document:
    """What a section found; all that it tried has passed."""
    found = Findings(directory / "found.json", name, 600)
    setting = Setting(directory, rehearse=True, backend=QUICK.get(name, "torch"))
    outline.measure(ALL[name], setting, found)
    document = document_of(directory / "found.json")
    assert document["state"] == "done", document["state"]
    assert [one for one in document["attempts"] if not one["passed"]] == []
    return document


def made_up_vllm() -> dict[str, ModuleType]:
    """What `VllmPeer` asks of vLLM: it says after each prompt its first token, and takes a while for each."""

    class LLM:
        def __init__(self, model: str, max_lora_rank: int, **settings: Any) -> None:
            assert settings["enable_lora"]
            config = json.loads((Path(model) / "config.json").read_text())
            assert config["architectures"] == ["LlamaForCausalLM"]
            assert (Path(model) / "model.safetensors").is_file()
            self._rank = max_lora_rank

        def generate(self, asked: Any, sampling: Any, lora_request: Any, use_tqdm: bool) -> list[Any]:
            adapter = Path(lora_request.path)
            assert json.loads((adapter / "adapter_config.json").read_text())["r"] == self._rank
            assert (adapter / "adapter_model.safetensors").is_file()
            time.sleep(1e-4 * sampling.max_tokens)
            texts = [prompt["prompt_token_ids"][:1] * sampling.max_tokens for prompt in asked]
            return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=text)]) for text in texts]

    found = {name: ModuleType(name) for name in ("vllm", "vllm.lora", "vllm.lora.request")}
    found["vllm"].__dict__.update(LLM=LLM, SamplingParams=lambda **settings: SimpleNamespace(**settings))
    found["vllm.lora.request"].__dict__["LoRARequest"] = lambda name, number, path: SimpleNamespace(path=path)
    return found
