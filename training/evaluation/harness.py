"""lm-eval tasks on a composed model, in modes base, ungated, routed, and with one stack alone.

This module needs the package `lm_eval`; import it where it is used.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor

from brainstacks.base_model import BaseModel
from brainstacks.composed_model import ComposedModel
from brainstacks.errors import ConfigError
from brainstacks.routing.features import pad_prompts
from training.data.batches import within_budget
from training.router.stacked_base import Weights

Mode = Literal["base", "ungated", "routed", "own"]
MODES: tuple[Mode, ...] = ("base", "ungated", "routed")
"""Those of every task; `own` needs a domain."""

TOKENS = 2048
"""Tokens of a forward, padding included; the logits of all of them are in memory."""
MAX_GENERATED = 256
"""Tokens of an answer where the task does not say."""
BOOTSTRAPS = 1000
"""Resamples for the standard errors of metrics that have no formula for theirs."""

Ids = list[int]


class ComposedLM(TemplateLM):  # type: ignore[misc]  # lm_eval has no types
    """A `StackedBaseModel` in one mode, as lm-eval sees it.

    In mode `routed` the route is the context's: the answer that is scored has no part in it. A rolling
    likelihood has no context; there, as for a prompt that serving scores, the text itself is routed.

    Text that `apply_chat_template` rendered is encoded as the chat that it came from; all other text is
    plain, so a special token's text in it stays text.

    Args:
        domain: whose stack, alone and at 1.0, mode `own` applies.

    Raises:
        ConfigError: an unknown mode, or `own` without a domain that is loaded.
    """

    def __init__(self, model: ComposedModel, mode: Mode = "routed", domain: str | None = None) -> None:
        super().__init__()
        if mode not in (*MODES, "own"):
            raise ConfigError(f"mode is {mode!r}; it is one of {', '.join(MODES)}, own")
        if mode == "own" and domain not in model.domains:
            raise ConfigError(f"no stack of {domain!r} is loaded; there is {', '.join(model.domains)}")
        self._domain = domain
        self._model = model
        self._mode = mode
        self._tokenizer = model.base.chat_tokenizer()
        self._chats: dict[str, Ids] = {}
        self._routes: dict[tuple[int, ...], Weights] = {}
        self.max_length = model.base.max_context

    # --- text -------------------------------------------------------------------------------------

    @property
    def eot_token_id(self) -> int:
        return self._tokenizer.eos_token_ids[0]

    @property
    def prefix_token_id(self) -> int:
        """What a text without a context follows: the base's BOS where it has one."""
        return next(iter(self._tokenizer.encode("")), self.eot_token_id)

    @property
    def tokenizer_name(self) -> str:
        return self._model.base.name

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> Ids:
        """Token ids; the base's BOS in front, where it has one, unless `add_special_tokens` is false."""
        return self._tokenizer.encode(string, add_special_tokens=add_special_tokens is not False)

    def apply_chat_template(
        self, chat_history: Sequence[Mapping[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The text of the chat, and a note of its token ids.

        Without `add_generation_prompt` the last message is an answer's beginning, and stays open.
        """
        messages = list(chat_history)
        begun = [] if add_generation_prompt else [messages.pop()["content"]]
        ids = self._tokenizer.encode_chat(messages)
        for text in begun:
            ids += self._tokenizer.encode(text, add_special_tokens=False)
        rendered = self._tokenizer.decode(ids)
        self._chats[rendered] = ids
        return rendered

    def _encode_pair(self, context: str, continuation: str) -> tuple[Ids, Ids]:
        if context in self._chats:
            return self._chats[context], self._tokenizer.encode(continuation, add_special_tokens=False)
        pair: tuple[Ids, Ids] = super()._encode_pair(context, continuation)
        return pair

    # --- likelihoods ------------------------------------------------------------------------------

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """Sum of log p (nats) of every token of each text, in windows of the context's length."""
        totals = []
        for (text,) in (request.args for request in requests):
            ids = self.tok_encode(text, add_special_tokens=False)
            windows = get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, 1)
            rows = [make_disjoint_window(window) for window in windows]
            weights = self._weights(ids[: self.max_length] or [self.prefix_token_id])
            totals.append(sum(value for value, _ in self._score(rows, [weights] * len(rows))))
        return totals

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str], Ids, Ids]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        # The last token of the continuation is predicted, not read.
        rows = [(self._last(context, len(scored) - 1), scored) for _, context, scored in requests]
        return self._score(rows, [self._weights(context) for context, _ in rows])

    def _score(self, rows: Sequence[tuple[Ids, Ids]], weights: Sequence[Weights]) -> list[tuple[float, bool]]:
        """(log p of the continuation in nats, whether it is greedy) of each (context, continuation)."""
        inputs = [[*context, *continuation][:-1] for context, continuation in rows]
        scores = [(0.0, True)] * len(rows)
        for batch in within_budget([len(ids) for ids in inputs], TOKENS):
            padded, _ = pad_prompts([inputs[i] for i in batch], self.max_length, self._model.base.device)
            starts = [len(rows[i][0]) for i in batch]
            logits = self._model.logits(padded, [weights[i] for i in batch], response_start=starts)
            for i, row in zip(batch, logits, strict=True):
                first = len(rows[i][0]) - 1
                scores[i] = _score_of(row[first : len(inputs[i])], rows[i][1])
        return scores

    # --- generation -------------------------------------------------------------------------------

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Answers up to the task's stop strings, greedy unless the task samples.

        Raises:
            ConfigError: the task sets an option of generation that there is not.
        """
        answers = [""] * len(requests)
        alike: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            alike.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(i)
        for options, rows in alike.items():
            sampling = _sampling(json.loads(options))
            contexts = [requests[i].args[0] for i in rows]
            prompts = [self._last(self._prompt(text), sampling["max_tokens"]) for text in contexts]
            weights = [self._weights(prompt) for prompt in prompts]
            found = self._model.generate(prompts, weights, **sampling)
            for i, answer in zip(rows, found, strict=True):
                answers[i] = answer
        return answers

    # --- what both need ---------------------------------------------------------------------------

    def _prompt(self, context: str) -> Ids:
        return self._chats.get(context) or self.tok_encode(context) or [self.prefix_token_id]

    def _last(self, context: Ids, after: int) -> Ids:
        """The end of `context` that leaves room for `after` more tokens."""
        room = self.max_length - after
        if room < 1:
            raise ConfigError(
                f"a task needs {after} tokens after the prompt; the base's context has {self.max_length}: "
                "leave this task out, or take a base with a longer context"
            )
        return context[-room:]

    def _weights(self, prompt: Ids) -> Weights:
        """The composition of this prompt in the model's mode; a prompt is routed once."""
        if self._mode == "base":
            return {}
        if self._mode == "own":
            return {str(self._domain): 1.0}
        if self._mode == "ungated":
            return dict.fromkeys(self._model.domains, 1.0)
        key = tuple(prompt)
        if key not in self._routes:
            route = self._model.route(prompt)
            self._routes[key] = {domain: route.weights[domain] for domain in route.active}
        return self._routes[key]


def check_tasks(names: Sequence[str]) -> None:
    """Raises ConfigError: lm-eval knows no such task; better asked before hours of measuring."""
    known = TaskManager()
    strangers = [name for name in names if not known.match_tasks([name])]
    if strangers:
        raise ConfigError(f"lm-eval has no task {', '.join(strangers)}; `lm-eval ls tasks` lists them")


def check_chat(base: BaseModel) -> None:
    """Raises ConfigError: it has no chat template to ask in; better told before hours of measuring."""
    if not base.chat_tokenizer().info()["chat_template"]:
        raise ConfigError(f"the base {base.name!r} has no chat template to ask in; give --no-chat")


def run_harness(
    model: ComposedModel,
    tasks: Sequence[Any],
    limit: int | None = None,
    modes: Sequence[Mode] = MODES,
    chat: bool = True,
) -> dict[str, dict[str, dict[str, float]]]:
    """Run lm-eval on `model` in each of `modes`.

    Args:
        tasks: names of lm-eval tasks, or task configurations as lm-eval takes them.
        limit: most documents per task.
        chat: put each prompt into the base's chat template, which is all that stacks and router were trained
            on; without it figures compare with those that are published of bases, and the router sees
            prompts of no kind that it knows.

    Returns:
        mode -> task -> metric -> value, with lm-eval's names of metrics (`acc,none`, `acc_stderr,none`).

    Raises:
        InvalidRequest: `chat`, and the base has no chat template.
    """
    # Reading the thousands of task files that lm-eval brings takes longer than a small task.
    known = TaskManager(include_defaults=any(isinstance(task, str) for task in tasks))
    results: dict[str, dict[str, dict[str, float]]] = {}
    for mode in modes:
        found = _evaluate(ComposedLM(model, mode), tasks, known, limit, chat, samples=False)["results"]
        results[mode] = {task: _numbers(metrics) for task, metrics in found.items()}
    return results


def document_scores(
    model: ComposedLM, task: Mapping[str, Any], metric: str, chat: bool = True
) -> list[float]:
    """`metric` of each document of `task`, a configuration as lm-eval takes it, in order.

    Raises:
        InvalidRequest: `chat`, and the base has no chat template.
    """
    found = _evaluate(model, [task], TaskManager(include_defaults=False), None, chat, samples=True)
    samples = sorted(found["samples"][task["task"]], key=lambda sample: int(sample["doc_id"]))
    return [float(sample[metric]) for sample in samples]


def _evaluate(
    model: ComposedLM,
    tasks: Sequence[Any],
    known: TaskManager,
    limit: int | None,
    chat: bool,
    *,
    samples: bool,
) -> dict[str, Any]:
    found: dict[str, Any] = simple_evaluate(
        model=model,
        tasks=list(tasks),
        task_manager=known,
        limit=limit,
        apply_chat_template=chat,
        log_samples=samples,
        bootstrap_iters=BOOTSTRAPS,
    )
    return found


def _score_of(logits: Tensor, continuation: Ids) -> tuple[float, bool]:
    """(sum of log p, all greedy) of `continuation` [n] from the `logits` [n, V] before each of its tokens."""
    ids = torch.tensor(continuation, device=logits.device)
    chosen = logits.log_softmax(-1).gather(-1, ids[:, None])
    return float(chosen.sum()), bool((logits.argmax(-1) == ids).all())


def _sampling(options: dict[str, Any]) -> dict[str, Any]:
    """lm-eval's options of generation -> those of `SamplingParams`."""
    known = dict(normalize_gen_kwargs(options, MAX_GENERATED))
    samples = known.pop("do_sample")
    temperature = known.pop("temperature", 1.0)
    return {
        "stop": tuple(filter(None, known.pop("until"))),
        "max_tokens": known.pop("max_gen_toks"),
        "temperature": temperature if samples else 0.0,
        **known,
    }


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items() if isinstance(value, int | float)}
