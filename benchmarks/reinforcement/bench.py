"""A registry's stacks, one of which learns on from preferences or rewards; and its answers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from benchmarks.instruments.timing import say
from brainstacks.durable import atomic_write, make_directory
from brainstacks.errors import ConfigError
from brainstacks.layers.bank import StackBank
from brainstacks.layers.packed_stack import StackTensors
from brainstacks.stacks.artifact import read_stack_metadata
from brainstacks.stacks.registry import Registry
from brainstacks.stacks.tensors import load_stack
from training.data.domains import DomainData, prepare
from training.data.encoding import Example, encode
from training.data.records import Record, prompt_key
from training.data.sources import load_source
from training.evaluation.validation import load_served
from training.recipe.recipe import Recipe, SourceRecipe
from training.recipe.reinforcement import StageRecipe
from training.reinforce.items import Pair, Question, load_stages, pairs_of, questions_of
from training.reinforce.rewards import REWARDS
from training.reinforce.rollouts import draw
from training.reinforce.stage import StageResult
from training.reinforce.stages import stage_task, train_stage
from training.rounds.compute import choose, load_as_stored
from training.rounds.device import take_device
from training.rounds.earlier_stacks import EarlierStacks
from training.rounds.task import RoundTask
from training.rounds.workshop import Workshop
from training.router.stacked_base import StackedBase, Weights
from training.runs.kept import Kept, Made
from training.runs.log import RunLog
from training.runs.processes import Processes
from training.runs.signals import StopRequest

ROWS = 32
"""Answers that are drawn at once."""
REWARD = REWARDS["exact_answer"]
SUMS = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2, "operators": ["+", "-", "*"]}
SUMS |= {"allow_parentheses": False, "allow_negation": False}
"""Options of reasoning-gym's basic_arithmetic: "Calculate 31 + 5.". The records' own questions are no use to
rewards: of 64 the demo's stacks answered none."""
SUM_TOKENS = 48
"""Of the longest answer to a sum."""


class Bench:
    """What is measured, and trained.

    Args:
        domain: whose stack learns on; its records say "The answer is N" or "#### N".
        tokens: longest answer that pairs reject.
        run: where pairs, checkpoints and results are kept.

    Raises:
        ConfigError: the registry has no stack of the domain, or no router.
    """

    def __init__(
        self, plan: Recipe, domain: str, registry: Registry, data: Path, tokens: int, run: Path, device: str
    ) -> None:
        self.plan, self.domain, self._tokens, self._run = plan, domain, tokens, run
        self._processes = Processes(take_device(device))
        base = load_as_stored(plan, str(self._processes.device))
        base = choose(base, plan.compute, backward=True).of(base)
        self.stacked, self.router = load_served(base, registry)
        if domain not in self.stacked.digests or self.router is None:
            raise ConfigError(f"the registry has no stack of {domain}, or no router; take another")
        path = registry.blob_path(self.stacked.digests[domain])
        self._metadata, self._stack = read_stack_metadata(path), load_stack(path)
        self.records = prepare(plan, data, [plan.domain(name) for name in self.stacked.digests])

    @property
    def of_domain(self) -> DomainData:
        return self.records[self.domain]

    @property
    def as_trained(self) -> Weights:
        """The composition that the stack was trained in, itself included."""
        return dict.fromkeys((*self._earlier, self.domain), 1.0)

    @property
    def _earlier(self) -> list[str]:
        return [predecessor.domain for predecessor in self._metadata.predecessors]

    def questions(self, records: Sequence[Record]) -> list[Question]:
        """Of `records`, which have the answer that is asked for as their response."""
        return questions_of(records, self.stacked.tokenizer, self.plan.data.max_tokens)

    def sums(self, count: int, besides: int = 0) -> list[Record]:
        """`count` sums; others than the `besides` that are given without."""
        size = 4 * (besides + count)
        generated = SourceRecipe("reasoning_gym:basic_arithmetic", options={"seed": 0, "size": size, **SUMS})
        found = {prompt_key(record): record for record in load_source(generated).records}
        return list(found.values())[besides : besides + count]

    def sums_file(self, count: int) -> Path:
        """`count` sums, as `rl:` reads them."""
        path = self._run / f"sums-{count}.jsonl"
        rows = [{"prompt": r.messages[0].content, "answer": r.response} for r in self.sums(count)]
        make_directory(self._run)
        atomic_write(path, "".join(json.dumps(row) + "\n" for row in rows))
        return path

    # --- answers ----------------------------------------------------------------------------------

    def answers(
        self,
        stacked: StackedBase,
        examples: Sequence[Example],
        weights: Sequence[Weights],
        tokens: int,
        temperature: float = 0.0,
    ) -> list[str]:
        """An answer of at most so many tokens to each prompt, under its own weights."""
        generator, found = torch.Generator().manual_seed(self.plan.round.seed), list[str]()
        for first in range(0, len(examples), ROWS):
            some = slice(first, first + ROWS)
            bound = stacked.bank.bind(weights[some])
            prompts = [example.prompt for example in examples[some]]
            drawn = draw(
                stacked.base.model,
                stacked.hooks,
                [bound] if bound else [],
                prompts,
                [tokens] * len(prompts),
                stacked.tokenizer.eos_token_ids,
                temperature,
                generator,
            )
            found += [stacked.tokenizer.decode(answer, skip_special_tokens=True) for answer in drawn]
            say(f"  {len(found)} of {len(examples)} prompts are answered")
        return found

    def rewards(
        self, stacked: StackedBase, asked: Sequence[Question], weights: Sequence[Weights]
    ) -> list[float]:
        """Of the likeliest answers, each 0 or 1."""
        texts = self.answers(stacked, [question.example for question in asked], weights, SUM_TOKENS)
        return [REWARD.score(text, question.expected) for text, question in zip(texts, asked, strict=True)]

    def pairs(self, what: str, records: Sequence[Record]) -> Path:
        """A file of those of `records` to which an answer that the model draws, without a stage, is wrong:
        their response is preferred to it (Pang et al., 2024). Made once; `what` is in its name.
        """
        found = [(record, REWARD.expected(record)) for record in records if len(record.messages) == 1]
        answered = {record.id: (record, expected) for record, expected in found if expected}
        path = self._run / f"{what}-{self._digest([self._tokens, *map(asdict, records)])}.jsonl"
        if path.is_file():
            return path
        say(f"drawing answers that the {what} reject ...")
        examples = self.encoded([record for record, _ in answered.values()])
        texts = self.answers(self.stacked, examples, [self.as_trained] * len(examples), self._tokens, 1.0)
        lines = []
        for example, text in zip(examples, texts, strict=True):
            record, expected = answered[example.id]
            if text.strip() and not REWARD.score(text, expected):
                lines.append(json.dumps(_row(record, text)) + "\n")
        make_directory(self._run)
        atomic_write(path, "".join(lines))
        return path

    def read_pairs(self, path: Path) -> list[Pair]:
        source = SourceRecipe(f"jsonl:{path}", format="preference")
        limit = self.plan.data.max_tokens
        return pairs_of(load_source(source).records, self.stacked.tokenizer, limit)

    # --- training ---------------------------------------------------------------------------------

    def trained(self, stage: StageRecipe) -> StageResult:
        """What `stage` makes of the domain's stack; trained now, from its last checkpoint, or read.

        Raises:
            ConfigError: there is nothing to learn from.
            Interrupted: a stop was asked for; the next start goes on.
        """
        domain = replace(self.plan.domain(self.domain), rl=(stage,))
        plan = replace(
            self.plan, domains=tuple(domain if d.name == domain.name else d for d in self.plan.domains)
        )
        (records,) = load_stages(plan, self.records, [domain])[domain.name]
        base, stacked = self.stacked.base, self.stacked
        facts = [
            asdict(stage) | {"data": None},
            *(
                list(map(asdict, some))
                for some in (records.train, records.held_out, self.of_domain.selection)
            ),
            [base.identity.fingerprint, base.quantization, base.dtype_name, asdict(plan.round)],
        ]
        place = self._run / f"{stage.method}-{self._digest(facts)}"
        make_directory(place)

        def train() -> Made:
            with StopRequest() as stop, RunLog(place) as log:
                round = RoundTask(
                    domain=domain.name,
                    number=self._metadata.rounds,
                    stack=self._metadata.config,
                    train=(),
                    selection=self.encoded(self.of_domain.selection),
                    data=plan.data,
                    config=plan.stage_of(domain, 0),
                    earlier=EarlierStacks(stacked.bank, self._earlier, plan.earlier_stacks, plan.round.seed),
                    own=[stacked.bank.bind([{domain.name: 1.0}])],
                )
                workshop = Workshop(self._processes, base, stacked.hooks, log, stop)
                task = stage_task(round, stage, 0, records, stacked.tokenizer)
                state = vars(train_stage(workshop, task, place / "checkpoints")).copy()
            return state.pop("tensors") or {}, state

        found = Kept(self._processes).once(place / "result", train)
        return StageResult(found.tensors or None, **found.state)

    def with_stage(self, result: StageResult) -> StackedBase:
        """What is served, with `result` as a further round of the domain's stack."""
        rounds, dtype = self._stack.rounds, next(iter(self._stack.tensors.values())).dtype
        further = {f"rounds.{rounds}.{n}": t.to(dtype) for n, t in (result.tensors or {}).items()}
        base, tensors = self.stacked.base, {**self._stack.tensors, **further}
        bank = StackBank(base.device, base.dtype)
        grown = StackTensors(self._metadata.config, rounds + 1, tensors)
        for name in self.stacked.digests:
            bank.add(name, grown if name == self.domain else self.stacked.bank.resident(name).stack)
        return replace(self.stacked, bank=bank)

    def encoded(self, records: Sequence[Record]) -> list[Example]:
        return encode(records, self.stacked.tokenizer, self.plan.data.max_tokens)

    def _digest(self, facts: object) -> str:
        """Of `facts`, JSON values, and of what is served."""
        every = json.dumps([facts, dict(self.stacked.digests)], sort_keys=True)
        return hashlib.sha256(every.encode()).hexdigest()[:20]


def _row(record: Record, rejected: str) -> dict[str, str]:
    """Of a file of pairs."""
    return {"prompt": record.messages[0].content, "chosen": record.response, "rejected": rejected}
