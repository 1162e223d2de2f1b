"""What a stage of preferences, and one of rewards, makes of a stack that is shipped: as trained, and routed.

    python -m benchmarks.reinforcement --data DIR

Each stage is a further round of the domain's stack on top of the registry's, as a recipe's `rl:` trains it.
Its pairs are the model's own: a record's response, and an answer of the model's to it that is wrong. Its
rewards are for sums.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.instruments import options
from benchmarks.instruments.results import RESULTS, machine, write_results
from benchmarks.instruments.timing import say
from benchmarks.reinforcement.bench import SUM_TOKENS, Bench
from benchmarks.reinforcement.figures import Change, Measured, table
from brainstacks.base_files import base_name
from brainstacks.stacks.registry import Registry
from training.data.encoding import Example
from training.evaluation.validation import route
from training.recipe.recipe import load_recipe
from training.recipe.reinforcement import DpoRecipe, GrpoRecipe, StageRecipe
from training.reinforce.items import Pair, Question
from training.rounds.allocator import keep_freed_memory
from training.router.stacked_base import StackedBase, Weights

NAME = "reinforcement"
METHODS = ("dpo", "grpo")
COMPOSITIONS = ("as trained", "routed")


@dataclass(frozen=True)
class Unseen:
    """Validation records, on which a stage is measured.

    Attributes:
        records: of every domain.
        asked: sums.
        pairs: of the domain whose stack learns on.
    """

    records: Mapping[str, Sequence[Example]]
    asked: Sequence[Question]
    pairs: Sequence[Pair]

    def weights(self, bench: Bench, composition: str, examples: Sequence[Example]) -> Sequence[Weights]:
        if composition == "routed":
            return route(bench.stacked, bench.router, examples)
        return [bench.as_trained] * len(examples)

    def measured(self, bench: Bench, stacked: StackedBase, composition: str) -> Measured:
        """Of `stacked`, the registry's stacks without or with a stage; the router is the registry's."""

        def nats(examples: Sequence[Example]) -> list[float]:
            return stacked.losses(examples, self.weights(bench, composition, examples))

        prompts = [question.example for question in self.asked]
        return Measured(
            bench.rewards(stacked, self.asked, self.weights(bench, composition, prompts)),
            nats([pair.example for pair in self.pairs]),
            nats([pair.rejected for pair in self.pairs]),
            {domain: nats(examples) for domain, examples in self.records.items()},
        )


def main(
    data: Annotated[
        Path, typer.Option(help="Records: <domain>/{train,validation}.jsonl.", exists=True, file_okay=False)
    ],
    registry: Annotated[Path, typer.Option(help="Its active stacks and router.")] = options.DEMO_REGISTRY,
    recipe: Annotated[str, typer.Option(help="By which it was trained: base, splits, rounds.")] = "demo",
    domain: Annotated[
        str, typer.Option(help="Whose stack learns on; its records say `#### N`, or `The answer is N`.")
    ] = "math",
    methods: Annotated[str, typer.Option(help="Separated by commas.")] = ",".join(METHODS),
    steps: Annotated[int, typer.Option(min=1, help="Of each stage.")] = 60,
    learning_rate: Annotated[float, typer.Option(help="Of each stage, at its peak.")] = 1e-4,
    max_nll_rise: Annotated[float, typer.Option(help="Nats per token; see the recipe's `rl:`.")] = 0.1,
    tokens: Annotated[int, typer.Option(min=1, help="Of the longest answer that pairs reject.")] = 160,
    drawn: Annotated[
        int,
        typer.Option(
            min=10, help="Training records that wrong answers are drawn to, and sums that are asked."
        ),
    ] = 256,
    asked: Annotated[
        int, typer.Option(min=1, help="Validation records that make pairs, and further sums.")
    ] = 96,
    limit: Annotated[
        int, typer.Option(min=1, help="Validation records per domain whose loss is taken.")
    ] = 48,
    run: Annotated[Path, typer.Option(help="What is finished is kept here.")] = Path("runs/reinforcement"),
    device: options.Device = "auto",
    output: options.Output = RESULTS,
) -> None:
    """Reward, preference accuracy and every domain's NLL before and after a stage of DPO, and one of GRPO.

    A killed command goes on where it was when it is given again, but that it draws pairs anew which it was
    drawing.

    A quick look: python -m benchmarks.reinforcement --data DIR --steps 2 --drawn 16 --asked 4 --limit 2
    """
    chosen = [name for name in METHODS if name in options.some_of(methods, METHODS)]
    keep_freed_memory()
    facts, plan = machine(), load_recipe(recipe)
    say("loading ...")
    bench = Bench(plan, domain, Registry(registry), data, tokens, run, device)
    shared: dict[str, Any] = {
        "steps": steps,
        "learning_rate": learning_rate,
        "max_nll_rise": max_nll_rise,
        "eval_every": max(1, steps // 6),
    }
    stages: dict[str, StageRecipe] = {}
    if "dpo" in chosen:
        pairs = bench.pairs("training-pairs", bench.of_domain.train[:drawn])
        stages["dpo"] = DpoRecipe(data=str(pairs), **shared)
    if "grpo" in chosen:
        stages["grpo"] = GrpoRecipe(data=str(bench.sums_file(drawn)), max_new_tokens=SUM_TOKENS, **shared)
    results = {name: bench.trained(stage) for name, stage in stages.items()}

    validation = bench.of_domain.validation[:asked]
    unseen = Unseen(
        {name: bench.encoded(of.validation[:limit]) for name, of in bench.records.items()},
        bench.questions(bench.sums(asked, besides=drawn)),
        bench.read_pairs(bench.pairs("validation-pairs", validation)),
    )
    counts = {name: [len(e.response) for e in examples] for name, examples in unseen.records.items()}
    say("measuring without a stage ...")
    before = {name: unseen.measured(bench, bench.stacked, name) for name in COMPOSITIONS}
    text, figures = [], {}
    for name, result in results.items():
        after = before
        if result.tensors is not None:
            say(f"measuring with {name} ...")
            grown = bench.with_stage(result)
            after = {c: unseen.measured(bench, grown, c) for c in COMPOSITIONS}
        changes = {c: Change(before[c], after[c], counts) for c in COMPOSITIONS}
        lines = [f"**{name.upper()}**", *result.told(f"{domain}, held out")[:1], table(changes)]
        text.append("\n\n".join(lines))
        figures[name] = {
            "frozen": result.tensors is not None,
            "stopped": result.stopped,
            "held_out": {"before": dict(result.before), "after": dict(result.after)},
            "history": [dict(point) for point in result.history],
            **{c: change.to_dict() for c, change in changes.items()},
        }
    settings = {
        **options.asked(base_name(plan.base), plan.quantization, device, recipe=Path(recipe).stem),
        **shared,
        **{"domain": domain, "tokens": tokens, "drawn": drawn, "asked": asked, "limit": limit},
    }
    note = (
        f"The stack of {domain} with a stage of {steps} steps as a further round, on {len(unseen.asked)} "
        f"sums and {len(unseen.pairs)} pairs of validation records, which chose nothing. NLL in nats "
        f"per answer token, of {limit} records per domain at most. Shares have Wilson's 95% interval; "
        "differences a paired bootstrap's, over records. One seed."
    )
    document = {
        "machine": facts,
        "settings": settings,
        "stacks": dict(bench.stacked.digests),
        "stages": figures,
    }
    write_results(NAME, document, "\n\n".join([note, *text]), output)


app = options.application(main)

if __name__ == "__main__":
    app()
