"""The report of a tiny run that the trainer made: complete, escaped, and honest about what is missing."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from brainstacks.base_model import identify_base
from brainstacks.stacks.registry import Registry
from brainstacks.stacks.router_artifact import read_router_metadata
from brainstacks.stacks.tensors import load_router_tensors, save_router
from tests.tiny import publish_stack, random_stack, write_records, write_router
from tests.training.report.parsed_page import NASTY, Parsed
from training.curriculum.outer_loop import run_curriculum
from training.evaluation.evaluation import Evaluation, RecordResult
from training.evaluation.expert_use import ExpertUse, save_expert_use
from training.evaluation.router import Transfer
from training.recipe.recipe import recipe_from
from training.report.page import render
from training.report.records import RunRecords
from training.report.report import SECTIONS, write_report
from training.report.routing import YARDSTICKS, router_training, routing
from training.report.serving import evaluation, lm_eval
from training.report.training import facts, forgetting, loss_curves
from training.runs.paths import EXPERT_USE, RunPaths

DOMAINS = ("chat", "math")
PLOTS = {
    "Loss curves": 1,
    "Residual rounds": 1,
    "Forgetting": 3,
    "Evaluation": 3,
    "Transfer": 1,
    "Router training": 1,
    "Routing": 2,
    "Expert use": 2,
    "Subspaces": 2,
    "Singular spectra": 1,
}


@pytest.fixture(scope="module")
def finished(tiny_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with `run` and `registry`: two domains as the trainer leaves them, and their evaluation."""
    root = tmp_path_factory.mktemp("trained")
    rng = random.Random(0)
    for domain in DOMAINS:
        rows = [("".join(rng.choices("abcdefghij", k=8)), "well hello") for _ in range(20)]
        write_records(root / "data" / domain / "train.jsonl", rows[:14])
        write_records(root / "data" / domain / "validation.jsonl", rows[14:])
    recipe = recipe_from(
        {
            "base": str(tiny_directory),
            "quantization": "none",
            "data": {"max_tokens": 64, "selection": 6, "forgetting": 3},
            "stack": {"rank": 2, "alpha": 4.0, "experts": 2, "top_k": 1},
            "round": {"steps": 4, "batch_size": 4, "learning_rate": 5e-3, "warmup_steps": 0, "eval_every": 2},
            "null_space": {"directions": 2, "samples": 4},
            "domains": [{"name": name, "licence": "CC0", "description": NASTY} for name in DOMAINS],
        }
    )
    registry = Registry(root / "registry", create=True)
    assert run_curriculum(recipe, registry, root / "run", root / "data", lambda line: None) == ()
    publish_router(registry, tiny_directory, root / "router.safetensors")
    evaluate(root / "run", registry)
    return root


def publish_router(registry: Registry, base: Path, path: Path) -> None:
    """A random router with the history of a training; the figures are made up."""
    write_router(path, registry, identify_base(base))
    yardsticks = {f"held_out_nll_{name}": nll for name, nll in zip(YARDSTICKS, (3, 2.9, 2.5, 2), strict=True)}
    history = [{"epoch": n, "held_out_bce": 0.7 / n, "held_out_nll_routed": 2.5 - n / 10} for n in (1, 2)]
    metadata = dataclasses.replace(
        read_router_metadata(path), metrics={**yardsticks, "epoch": 2, "history": history}
    )
    save_router(path, metadata, load_router_tensors(path))
    registry.publish_router(path)


def evaluate(run: Path, registry: Registry) -> None:
    """Add what a registry's evaluation leaves; the figures are made up."""
    stacks, router = registry.snapshot().serving
    records = [
        RecordResult(
            f"{domain}-{i}",
            domain,
            10,
            {"base": 30.0 + i, "ungated": 28.0, "routed": 20.0 + i, "only-own": 21.0}
            | ({"combination": 19.5, "oracle": 19.0} if i < 2 else {}),
            {domain: 0.75},
            {domain: 1.0} if i < 2 else None,
        )
        for domain in DOMAINS
        for i in range(4)
    ]
    alone = {d: {other: 2.0 if d == other else 3.5 for other in DOMAINS} for d in DOMAINS}
    gains = {
        d: {other: (3.0 - nll - 0.1, 3.0 - nll + 0.1) for other, nll in row.items()}
        for d, row in alone.items()
    }
    task = {"acc,none": 0.5, "acc_stderr,none": 0.25, "sample_len": 4}
    document = {
        **Evaluation(tuple(records), stacks, router).to_dict(),
        "transfer": Transfer(dict.fromkeys(DOMAINS, 3.0), alone, gains).to_dict(),
        "lm_eval": {
            "chat_template": True,
            "limit": 4,
            "results": {mode: {"sums": task, NASTY: {"f1,strict": 1.0}} for mode in ("base", "routed")},
        },
    }
    (run / "evaluation.json").write_text(json.dumps(document))
    projections = ("q_proj", "v_proj")
    shares = torch.tensor([[[[0.25, 0.75]] * 2] * 2], dtype=torch.float64)
    save_expert_use(run / EXPERT_USE, {d: ExpertUse(stacks[d], 123, projections, shares) for d in DOMAINS})


@pytest.fixture(scope="module")
def page(finished: Path) -> str:
    return write_report(finished / "run", Registry(finished / "registry")).read_text(encoding="utf-8")


@pytest.fixture
def records(finished: Path, tmp_path: Path) -> RunRecords:
    """Of a copy of the run, to be changed."""
    run = shutil.copytree(finished / "run", tmp_path / "run")
    return RunRecords(RunPaths(run), Registry(finished / "registry"))


def test_what_was_measured_of_other_stacks_is_not_shown(finished: Path, tmp_path: Path) -> None:
    registry = Registry(shutil.copytree(finished / "registry", tmp_path / "registry"))
    identity = identify_base(Path(json.loads((finished / "run" / "run.json").read_text())["recipe"]["base"]))
    publish_stack(registry, identity, DOMAINS[0], random_stack(identity.dims, 7), tmp_path)
    records = RunRecords(RunPaths(finished / "run"), registry)
    assert (records.evaluation, records.transfer, records.lm_eval) == (None, None, None)
    assert set(records.expert_use or {}) == set(DOMAINS[1:])


def test_what_was_measured_with_another_router_is_not_shown(finished: Path, tmp_path: Path) -> None:
    registry = Registry(shutil.copytree(finished / "registry", tmp_path / "registry"))
    identity = identify_base(Path(json.loads((finished / "run" / "run.json").read_text())["recipe"]["base"]))
    registry.publish_router(write_router(tmp_path / "router.safetensors", registry, identity, seed=1))
    records = RunRecords(RunPaths(finished / "run"), registry)
    assert (records.evaluation, records.transfer, records.lm_eval) == (None, None, None)
    assert set(records.expert_use or {}) == set(DOMAINS)


def sections(page: str) -> dict[str, str]:
    """Title -> markup."""
    parts = page.split("<section")[1:]
    return {part.split("<h2>")[1].split("</h2>")[0]: part.split("</section>")[0] for part in parts}


def edit(path: Path, change: Callable[[Any], object]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def test_a_finished_run_fills_every_section(page: str) -> None:
    found = sections(page)
    assert len(found) == len(SECTIONS)
    assert "nothing to show" not in page
    assert {title: text.count("<figure>") for title, text in found.items() if "<figure>" in text} == PLOTS
    assert page.count("<svg") == sum(PLOTS.values())


def test_the_page_is_whole_and_nothing_in_it_runs_or_is_fetched(page: str) -> None:
    found = Parsed(page)
    assert not found.tags() & {"script", "link", "img", "iframe", "object", "image"}
    ids = Counter(a["id"] for _, a in found.elements if "id" in a)
    assert max(ids.values()) == 1
    links = {a.get("href") or a.get("xlink:href") for _, a in found.elements} - {None}
    assert {str(link) for link in links} <= {f"#{name}" for name in ids}


def test_it_tells_the_figures_of_the_files(page: str, finished: Path) -> None:
    run, found = finished / "run", sections(page)
    state = json.loads((run / "math" / "round-0" / "state.json").read_text())
    assert f"<td>{state['baseline']:.4f}</td><td>{state['best']:.4f}</td>" in found["Residual rounds"]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    tokens = sum(line["tokens"] for line in lines if line["kind"] == "step" and line["domain"] == "chat")
    assert f"<td>chat</td><td>1</td><td>4</td><td>{tokens:,}</td>" in found["Run"]
    losses = [line["nll"] for line in lines if line["kind"] == "evaluation"]
    assert len(losses) == 4
    assert all(f"<td>{loss:.4f}</td>" in found["Loss curves"] for loss in losses)
    last = json.loads((run / "forgetting.json").read_text())["rows"][-1]["chat"]
    cells = "".join(f"<td>{last[kind]:.4f}</td>" for kind in ("ungated", "isolated", "prefix"))
    assert f"<td>math</td><td>chat</td>{cells}" in found["Forgetting"]
    assert "<td>chat</td><td>3.1500</td><td>2.8000</td><td>2.1500</td><td>2.1000</td>" in found["Evaluation"]
    assert "<td>chat</td><td>math</td><td>3.0000</td><td>3.5000</td><td>-0.5000 (-0.6000" in found["Transfer"]
    assert "<td>sums</td><td>acc,none</td><td>0.5000 ± 0.2500</td>" in found["lm-eval"]
    assert "f1,strict</td><td>1.0000</td>" in found["lm-eval"]
    assert "the first 4 documents of each, prompts in the base&#39;s chat template" in found["lm-eval"]
    assert "<td>2</td><td>2.3000</td><td>0.3500</td>" in found["Router training"]
    assert "Epoch 2 was kept" in found["Router training"]
    assert "chat 100% (51%..100%)" in found["Routing"]
    assert "<td>0</td><td>25% 75%</td><td>25% 75%</td>" in found["Expert use"]
    assert "<td>math</td><td>output</td><td>min 2, mean 2, max 2</td>" in found["Null space"]


def test_a_run_that_has_only_begun_says_what_makes_the_rest(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    shutil.copy(finished / "run" / "run.json", tmp_path / "run")
    path = write_report(tmp_path / "run", Registry(tmp_path / "empty", create=True))
    found = sections(path.read_text(encoding="utf-8"))
    missing = {title: text for title, text in found.items() if "nothing to show" in text}
    assert set(missing) == {*PLOTS, "lm-eval"}
    for title, command in (
        ("Loss curves", "curriculum"),
        ("Evaluation", "evaluate"),
        ("lm-eval", "evaluate --lm-eval TASK"),
        ("Transfer", "evaluate"),
        ("Router training", "router"),
        ("Routing", "evaluate"),
    ):
        assert f"<code>brainstacks-train {command}</code> makes it" in missing[title]


def test_a_run_that_is_going_on_is_shown_as_far_as_it_is(records: RunRecords) -> None:
    text = records.run.metrics.read_text().splitlines(keepends=True)
    first = [line for line in text if json.loads(line)["domain"] == "chat"]
    records.run.metrics.write_text("".join(first[:3]) + first[3][:-5])
    with records.run.path.joinpath("lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (table,) = loss_curves(records).tables
    assert {row[0] for row in table.rows} == {"chat"}


def test_a_run_that_was_stopped_is_marked_and_one_that_goes_on_is_not_called_so(records: RunRecords) -> None:
    records.run.stack("math").unlink()
    shutil.rmtree(records.run.round("math", 0))
    (told,) = facts(records).text
    assert told.startswith(
        "This run is stopped at step 4 of math, round 1: math not finished; the same command"
    )
    with records.run.path.joinpath("lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (told,) = facts(RunRecords(records.run, records.registry)).text
    assert told.startswith("This run is going on at step 4 of math, round 1: math not finished. What")


def test_a_finished_run_and_a_router_of_its_stacks_need_no_word(records: RunRecords) -> None:
    assert ("state", "finished") in facts(records).tables[0].rows
    assert facts(records).text == router_training(records).text == []


def test_a_router_that_is_older_than_a_stack_is_labelled(
    records: RunRecords, finished: Path, tiny_directory: Path, tmp_path: Path
) -> None:
    registry = Registry(shutil.copytree(finished / "registry", tmp_path / "registry"))
    base = identify_base(tiny_directory)
    publish_stack(registry, base, "math", random_stack(base.dims, 7), tmp_path)
    (told,) = router_training(RunRecords(records.run, registry)).text
    assert told.startswith("This router is older than the stacks of math: ")


def test_a_prefix_loss_that_moved_is_told(records: RunRecords) -> None:
    edit(records.run.forgetting, lambda d: d["rows"][-1]["chat"].update(prefix=1.0))
    assert forgetting(records).text == [
        "The prefix loss of chat has changed: a frozen stack, or the base, is not what it was."
    ]


def test_what_files_say_never_becomes_markup(records: RunRecords) -> None:
    edit(records.run.path / "run.json", lambda document: document["data"].update({NASTY: {NASTY: NASTY}}))
    edit(records.run.evaluation, lambda d: [record.update(domain=NASTY) for record in d["records"]])
    text = records.run.metrics.read_text().replace('"chat"', json.dumps(NASTY))
    records.run.metrics.write_text(text)
    chosen = (facts, loss_curves, evaluation, lm_eval, routing)
    page = Parsed(render(NASTY, [section(records) for section in chosen]))
    assert "script" not in page.tags()
    assert page.texts.count(NASTY) >= 10
