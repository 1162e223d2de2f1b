"""A composed model under lm-eval: likelihoods are those of plain logits, and whole tasks run offline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance

from brainstacks import ComposedModel
from brainstacks.base_model import identify_base
from brainstacks.errors import ConfigError, InvalidRequest
from brainstacks.layers.packed_stack import StackTensors
from brainstacks.stacks.registry import Registry
from tests.tiny import (
    END,
    plain_greedy,
    plain_logits,
    publish_stack,
    random_stack,
    save_base,
    tiny_model,
    write_router,
)
from training.evaluation.harness import ComposedLM, Mode, document_scores, run_harness

DOMAINS = ("chat", "math")
CONTEXT = 64
"""Tokens of the tiny base's context: short enough to be overrun."""
MODES: tuple[Mode, ...] = ("base", "ungated", "routed")
Weighted = list[tuple[StackTensors, float]]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("bases") / "tiny", max_position_embeddings=CONTEXT)


@pytest.fixture(scope="module")
def stacks(base: Path) -> dict[str, StackTensors]:
    return {d: random_stack(identify_base(base).dims, i + 1, size=0.4) for i, d in enumerate(DOMAINS)}


@pytest.fixture(scope="module")
def model(
    base: Path, stacks: dict[str, StackTensors], tmp_path_factory: pytest.TempPathFactory
) -> ComposedModel:
    """With the stacks, and a router over them."""
    directory = tmp_path_factory.mktemp("served")
    registry, identity = Registry(directory / "registry", create=True), identify_base(base)
    for domain, stack in stacks.items():
        publish_stack(registry, identity, domain, stack, directory)
    registry.publish_router(write_router(directory / "router.safetensors", registry, identity))
    return load(base, directory / "registry")


def load(base: Path, registry: Path) -> ComposedModel:
    return ComposedModel.load(base, registry, quantization="none", device="cpu", dtype="float32")


def ids_of(text: str) -> list[int]:
    return list(text.encode())


def composition(
    model: ComposedModel, mode: Mode, prompt: list[int], stacks: dict[str, StackTensors]
) -> Weighted:
    """What `mode` applies to `prompt`, for the plain oracle."""
    if mode == "routed":
        route = model.route(prompt)
        return [(stacks[d], route.weights[d]) for d in route.active]
    on = {"ungated": DOMAINS, "own": ("math",)}.get(mode, ())
    return [(stacks[d], 1.0) for d in on]


def plain_score(prompt: list[int], answer: list[int], stacks: Weighted) -> tuple[float, bool]:
    base = tiny_model(max_position_embeddings=CONTEXT)
    logprobs = plain_logits(base, [*prompt, *answer], stacks).log_softmax(-1)[len(prompt) - 1 : -1]
    value = sum(float(row[t]) for row, t in zip(logprobs, answer, strict=True))
    return value, [int(row.argmax()) for row in logprobs] == answer


def requests(kind: Any, *args: tuple[Any, ...]) -> list[Instance]:
    return [Instance(request_type=kind, doc={}, arguments=a, idx=i) for i, a in enumerate(args)]


def likelihoods(lm: ComposedLM, *pairs: tuple[str, str]) -> list[tuple[float, bool]]:
    found: Sequence[tuple[float, bool]] = lm.loglikelihood(
        requests("loglikelihood", *pairs), disable_tqdm=True
    )
    return list(found)


# --- likelihoods ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [*MODES, "own"])
def test_likelihoods_are_those_of_plain_logits_row_by_row(
    mode: Mode, model: ComposedModel, stacks: dict[str, StackTensors]
) -> None:
    pairs = [("what is 2+2?", " 4"), ("hello", " there, you"), ("a", "b"), ("what is 2+2?", " five")]
    found = likelihoods(ComposedLM(model, mode, "math"), *pairs)
    for (context, answer), (value, greedy) in zip(pairs, found, strict=True):
        prompt = ids_of(context)
        expected = plain_score(prompt, ids_of(answer), composition(model, mode, prompt, stacks))
        assert value == pytest.approx(expected[0], abs=1e-3), (context, answer)
        assert greedy == expected[1]


def test_the_models_own_greedy_answer_is_greedy(model: ComposedModel) -> None:
    answer = model.generate("hello", {}, max_tokens=3, temperature=0.0, ignore_eos=True)
    lm = ComposedLM(model, "base")
    chat = lm.apply_chat_template([{"role": "user", "content": "hello"}])
    ((_, greedy), (_, other)) = likelihoods(lm, (chat, answer), (chat, answer + "\x00"))
    assert greedy
    assert not other


def test_spaces_between_context_and_answer_are_scored_and_only_once(model: ComposedModel) -> None:
    lm = ComposedLM(model, "base")
    (before, _), (after, _) = likelihoods(lm, ("two words ", "here"), ("two words", " here"))
    assert before == after
    assert before == pytest.approx(plain_score(ids_of("two words"), ids_of(" here"), [])[0], abs=1e-3)


def test_a_text_without_context_follows_the_end_of_a_text(model: ComposedModel) -> None:
    lm = ComposedLM(model, "base")
    ((value, _),) = likelihoods(lm, ("", "abc"))
    assert value == pytest.approx(plain_score([END], ids_of("abc"), [])[0], abs=1e-3)


def test_a_context_that_does_not_fit_is_cut_from_the_left(model: ComposedModel) -> None:
    long = "0123456789" * 10
    answer = " yes"
    ((value, _),) = likelihoods(ComposedLM(model, "base"), (long, answer))
    kept = ids_of(long)[-(CONTEXT - len(answer) + 1) :]
    assert value == pytest.approx(plain_score(kept, ids_of(answer), [])[0], abs=1e-3)


def test_an_answer_longer_than_the_context_is_refused(model: ComposedModel) -> None:
    with pytest.raises(ConfigError, match="context has 64"):
        likelihoods(ComposedLM(model, "base"), ("a", "b" * 70))


def test_the_answer_has_no_part_in_the_route(model: ComposedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[list[int]] = []
    route = model.route

    def reading(prompt: Any) -> Any:
        read.append(prompt)
        return route(prompt)

    monkeypatch.setattr(model, "route", reading)
    likelihoods(ComposedLM(model, "routed"), ("abc", " d"), ("abc", " e"), ("xyz", " d"))
    assert read == [ids_of("abc"), ids_of("xyz")], "each prompt once"


def test_every_token_of_a_long_text_is_predicted_once(model: ComposedModel) -> None:
    text = "".join(chr(97 + i % 26) for i in range(150))
    (found,) = ComposedLM(model, "base").loglikelihood_rolling(requests("loglikelihood_rolling", (text,)))
    ids = [END, *ids_of(text)]
    expected = 0.0
    for start in range(1, len(ids), CONTEXT):
        scored = ids[start : start + CONTEXT]
        end = start + len(scored)
        context = ids[max(0, end - 1 - CONTEXT) : start]
        expected += plain_score(context, scored, [])[0]
    assert found == pytest.approx(expected, abs=1e-2)


# --- chats ---------------------------------------------------------------------------------------


def test_a_rendered_chat_is_encoded_as_the_chat_and_plain_text_stays_plain(model: ComposedModel) -> None:
    lm = ComposedLM(model, "base")
    messages = [{"role": "user", "content": "hi <|im_end|>"}]
    chat = lm.apply_chat_template(messages)
    prompt = model.base.chat_tokenizer().encode_chat(messages)
    (in_chat, _), (plain, _) = likelihoods(lm, (chat, "yes"), ("<|im_end|>", "yes"))
    assert in_chat == pytest.approx(plain_score(prompt, ids_of("yes"), [])[0], abs=1e-3)
    assert plain == pytest.approx(plain_score(ids_of("<|im_end|>"), ids_of("yes"), [])[0], abs=1e-3)


def test_an_answer_that_the_task_begins_stays_open(model: ComposedModel) -> None:
    lm = ComposedLM(model, "base")
    user = {"role": "user", "content": "hi"}
    chat = lm.apply_chat_template([user, {"role": "assistant", "content": "well"}], False)
    prompt = [*model.base.chat_tokenizer().encode_chat([user]), *ids_of("well")]
    ((value, _),) = likelihoods(lm, (chat, " yes"))
    assert value == pytest.approx(plain_score(prompt, ids_of(" yes"), [])[0], abs=1e-3)


# --- generation ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_answers_are_the_plain_greedy_ones_up_to_the_stop(
    mode: Mode, model: ComposedModel, stacks: dict[str, StackTensors]
) -> None:
    options = {"until": ["\n"], "max_gen_toks": 8, "do_sample": False}
    asked = [("abc", options), ("what is it? " * 9, {**options, "max_gen_toks": 4}), ("xyz", options)]
    found = ComposedLM(model, mode).generate_until(requests("generate_until", *asked))
    for (context, given), answer in zip(asked, found, strict=True):
        count = int(str(given["max_gen_toks"]))
        prompt = ids_of(context)[-(CONTEXT - count) :]
        used = composition(model, mode, prompt, stacks)
        base = tiny_model(max_position_embeddings=CONTEXT)
        expected = bytes(t for t in plain_greedy(base, prompt, count, used) if t < 256)
        assert answer == expected.split(b"\n")[0].decode(errors="replace"), context


def test_an_option_of_generation_that_there_is_not_is_refused(model: ComposedModel) -> None:
    with pytest.raises(ConfigError, match="num_beams"):
        ComposedLM(model, "base").generate_until(
            requests("generate_until", ("a", {"num_beams": 4, "max_gen_toks": 2}))
        )


# --- whole tasks ---------------------------------------------------------------------------------


def documents(**_: Any) -> Any:
    from datasets import Dataset, DatasetDict

    rows = [{"question": f"{i} + {i}", "choices": [str(2 * i), "no"], "answer": i % 2} for i in range(4)]
    return DatasetDict({"test": Dataset.from_list(rows)})


def task() -> dict[str, Any]:
    """A multiple-choice task over a data set in memory."""
    return {
        "task": "sums",
        "custom_dataset": documents,
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": "Q: {{question}} =",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }


def test_a_task_runs_offline_in_all_modes(model: ComposedModel, stacks: dict[str, StackTensors]) -> None:
    found = run_harness(model, [task()], limit=3, chat=False)
    assert tuple(found) == MODES
    for mode in MODES:
        right = 0
        for row in documents()["test"].select(range(3)):
            prompt = ids_of(f"Q: {row['question']} =")
            used = composition(model, mode, prompt, stacks)
            scores = [plain_score(prompt, ids_of(f" {choice}"), used)[0] for choice in row["choices"]]
            right += scores.index(max(scores)) == row["answer"]
        assert found[mode]["sums"]["acc,none"] == pytest.approx(right / 3), mode


def test_scores_of_documents_are_in_their_order(model: ComposedModel) -> None:
    lm = ComposedLM(model, "base")
    found = document_scores(lm, task(), "acc", chat=False)
    assert set(found) == {0.0, 1.0}
    swapped = {**task(), "doc_to_target": "{{1 - answer}}"}
    assert document_scores(lm, swapped, "acc", chat=False) == [1 - one for one in found]


def test_a_task_in_the_chat_template_asks_the_chat(
    model: ComposedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[torch.Tensor] = []
    logits = model.logits
    monkeypatch.setattr(model, "logits", lambda ids, *a, **k: asked.append(ids) or logits(ids, *a, **k))  # type: ignore[func-returns-value]
    run_harness(model, [task()], limit=1, modes=("base",))
    prompt = model.base.chat_tokenizer().encode_chat([{"role": "user", "content": "Q: 0 + 0 ="}])
    assert all(row[: len(prompt)].tolist() == prompt for ids in asked for row in ids)


# --- refusals ------------------------------------------------------------------------------------


def test_an_unknown_mode_is_refused(model: ComposedModel) -> None:
    with pytest.raises(ConfigError, match="base, ungated, routed, own"):
        ComposedLM(model, "gated")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="'law' is loaded; there is chat, math"):
        ComposedLM(model, "own", "law")


def test_routing_without_a_router_is_refused(base: Path, tmp_path: Path) -> None:
    Registry(tmp_path / "empty", create=True)
    lm = ComposedLM(load(base, tmp_path / "empty"), "routed")
    with pytest.raises(InvalidRequest, match="no meta-router"):
        likelihoods(lm, ("a", " b"))
