"""MoE-LoRA against one LoRA of equal trainable parameters, each at the best of a search of its own.

    python -m benchmarks.experiments.moe_search --data DIR --preset cpu

A learning rate that suits one of them decides as much as the architecture does, and a mixture has more to be
set: so each is searched, at equal cost, until its best rate has a worse one on either side. Then both train
on the same examples in the same order. The paper has MoE-LoRA reach the LoRA's final loss in 2.5 times fewer
steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from statistics import fmean
from typing import Annotated, Any, Literal, cast

import typer

from benchmarks.experiments.curves import curve_of, curve_table, steps_to_the_end_of
from benchmarks.experiments.laboratory import Laboratory
from benchmarks.experiments.measurements import (
    HOW_SURE,
    Measurements,
    answer_tokens,
    each_own,
    nats_of_base,
    nats_under,
)
from benchmarks.experiments.search import RATE, Budget, Search, Space
from benchmarks.experiments.setting import Setting
from benchmarks.experiments.settings import Settings
from benchmarks.experiments.study import KEPT, Data, Findings, Run, Study, run_studies
from benchmarks.experiments.trainings import Training
from benchmarks.instruments import options
from benchmarks.instruments.results import RESULTS, Spread, markdown_table
from brainstacks.config import Quantization
from training.evaluation.intervals import Estimate
from training.recipe.settings import StackRecipe, require

PAPER = 2.5
MIXTURE, LORA = "MoE-LoRA", "LoRA"
ALPHA = 16.0


@dataclass(frozen=True, kw_only=True)
class SearchSettings(Settings):
    """The searches are on `long_domains` and the first seed; the answer is of all domains and seeds.

    Attributes:
        budget: of each of the two searches; its last length is `steps`.
    """

    budget: Budget
    domains: tuple[str, ...] = ("math", "medical")
    long_domains: tuple[str, ...] = ("math",)
    steps: int = 400
    warmup_steps: int = 10
    records: int = 3200
    selection: int = 48
    validation: int = 100
    stack: StackRecipe = field(default_factory=lambda: StackRecipe(rank=16, top_k=2, dtype="float32"))

    def __post_init__(self) -> None:
        super().__post_init__()
        last = self.budget.lengths[-1]
        require(last == self.steps, f"steps is {self.steps}; it is the budget's last length, {last}")

    @property
    def about(self) -> int:
        """Steps of both searches and the answer; more where an optimum lies far off."""
        searched = len(self.long_domains)
        answered = len(self.seeds) * len(self.domains) - searched  # which the search has trained
        return 2 * (searched * self.budget.steps + answered * self.steps)


PRESETS: Mapping[str, SearchSettings] = {
    "gpu": SearchSettings(budget=Budget((40, 120, 400), (22, 4, 1)), eval_every=20),
    "cpu": SearchSettings(
        budget=Budget((20, 80, 400), (20, 3, 1)),
        seeds=(0,),
        eval_every=20,
        batch_size=4,
    ),
    "quick": SearchSettings(
        budget=Budget((2, 4), (4, 1)),
        seeds=(0,),
        steps=4,
        warmup_steps=1,
        eval_every=2,
        batch_size=2,
        selection=4,
        validation=4,
    ),
}


def spaces(settings: Settings, ranks: Mapping[str, int]) -> dict[str, Space]:
    """Contestant -> what is searched; a mixture's gates on top of what both have."""
    start = {kind: Setting(settings.learning_rate, ALPHA / math.sqrt(rank)) for kind, rank in ranks.items()}
    ratios, choices = {RATE: 2.0, "scaling": 4.0}, {"dropout": (0.1,)}
    stack = settings.stack
    gates: dict[str, Sequence[Any]] = {
        "gate_init": (0.25, 4.0),
        "noise": ("annealed", "off"),
        "balance": (0.0, 0.1),
        "top_k": [k for k in (1, 2, stack.experts) if k != stack.config(1).top_k],
        "soft": (0.25,),
    }
    mixture = replace(
        start[MIXTURE], experts=stack.experts, top_k=stack.config(1).top_k, noise="on", balance=0.01
    )
    return {
        MIXTURE: Space(mixture, {**ratios, "gate_rate": 4.0}, {**choices, **gates}),
        LORA: Space(start[LORA], ratios, choices),
    }


class _Contest:
    """What of the two contestants is trained."""

    def __init__(self, lab: Laboratory) -> None:
        self.lab, self.settings = lab, cast(SearchSettings, lab.settings)
        self.ranks = {MIXTURE: self.settings.stack.rank, LORA: lab.materials.lora().rank}
        self._left = self.settings.about

    def search(self, kind: str, space: Space) -> tuple[Setting, Search]:
        """The best setting, and how it was found."""
        search = Search(space, self.settings.budget, partial(self._losses, kind))
        return search.best(), search

    def answer(self, kind: str, setting: Setting) -> list[dict[str, Training]]:
        """For each seed, domain -> training, made."""
        settings = self.settings
        found = [
            {d: self._training(kind, setting, d, settings.steps, seed) for d in settings.domains}
            for seed in settings.seeds
        ]
        self._make([training for one in found for training in one.values()])
        return found

    def _losses(self, kind: str, tried: Sequence[Setting], steps: int) -> list[float]:
        """Selection NLL of the best snapshot, the mean over the domains that are searched on."""
        domains, seed = self.settings.long_domains, self.settings.seeds[0]
        made = [[self._training(kind, s, d, steps, seed) for d in domains] for s in tried]
        self._make([training for one in made for training in one])
        return [fmean(min(self.lab.trained(t).losses) for t in one) for one in made]

    def _make(self, trainings: Sequence[Training]) -> None:
        self._left = max(0, self._left - sum(t.steps for t in trainings))
        self.lab.train_all(trainings, later=self._left)

    def _training(self, kind: str, setting: Setting, domain: str, steps: int, seed: int) -> Training:
        return setting.training(self.ranks[kind], domain, steps, seed, self.settings.quantization)


def _find(lab: Laboratory) -> Findings:
    contest = _Contest(lab)
    searched = {k: contest.search(k, space) for k, space in spaces(lab.settings, contest.ranks).items()}
    answers = {kind: contest.answer(kind, best) for kind, (best, _) in searched.items()}
    measured = _measured(lab, answers)
    curves = {kind: [curve_of(lab, stacks) for stacks in seeds] for kind, seeds in answers.items()}
    reached = steps_to_the_end_of(curves[LORA], curves[MIXTURE])
    difference = measured.difference(MIXTURE, LORA)
    identity = lab.materials.identity
    counts = {
        kind: best.parameters(contest.ranks[kind], identity.dims, identity.layers)
        for kind, (best, _) in searched.items()
    }
    text = "\n\n".join(
        (
            measured.table(LORA),
            curve_table(curves),
            markdown_table(
                ["trainable parameters", "rank", "all", "deltas", "gates", "noise weights (training only)"],
                [[k, contest.ranks[k], c.total, c.deltas, c.gates, c.noise] for k, c in counts.items()],
            ),
            *(search.tables(kind) for kind, (_, search) in searched.items()),
            f"{HOW_SURE} The LoRA's rank gives as many parameters as the mixture has with noise. Curves, and "
            "the losses of a search: selection NLL.",
        )
    )
    figures = {
        "best": {kind: asdict(best) for kind, (best, _) in searched.items()},
        "validation_nll": measured.to_dict(),
        "moe_less_lora": difference.to_dict(),
        "moe_steps_to_the_final_loss_of_the_lora": reached,
        "selection_curves": {kind: [list(map(list, c)) for c in found] for kind, found in curves.items()},
        "trainable_parameters": {kind: asdict(count) for kind, count in counts.items()},
        "budget": asdict(contest.settings.budget),
        "searched_on": contest.settings.long_domains,
        "searches": {kind: _tried(search) for kind, (_, search) in searched.items()},
    }
    verdict = f"{_told(difference, len(reached))} {_fast(reached, lab.settings.steps)} " + " ".join(
        f"Best of {sum(map(len, search.found.values()))} trainings, {kind}: {best}."
        for kind, (best, search) in searched.items()
    )
    return Findings(verdict, text, figures)


def _measured(lab: Laboratory, answers: Mapping[str, list[dict[str, Training]]]) -> Measurements:
    """Each domain under its own stack."""
    domains, quantization = lab.settings.domains, lab.settings.quantization
    nats = {"base": [nats_of_base(lab, domains)]}
    for kind, seeds in answers.items():
        stacked = [lab.stacked(stacks, quantization) for stacks in seeds]
        nats[kind] = [nats_under(lab.materials, one, each_own(domains)) for one in stacked]
    return Measurements(answer_tokens(lab.materials, domains), nats)


def _tried(search: Search) -> dict[str, list[dict[str, Any]]]:
    return {
        str(steps): [{**asdict(setting), "loss": loss} for setting, loss in found.items()]
        for steps, found in search.found.items()
    }


def _told(difference: Estimate, seeds: int) -> str:
    verdict = {-1: "pays", 0: "cannot be told from the LoRA", 1: "does not pay"}[difference.sign]
    given = "one seed" if seeds == 1 else f"{seeds} seeds"
    return f"The mixture {verdict} ({given}): {difference} nats, each at its best, less the LoRA's."


def _fast(reached: Sequence[float | None], steps: int) -> str:
    """Of `reached` (steps) after trainings of `steps`, a seed each."""
    if None in reached:
        return (
            f"With {reached.count(None)} of {len(reached)} seeds it does not reach the LoRA's final loss in "
            f"as many steps (paper: in {PAPER:g} times fewer)."
        )
    if 0 in reached:
        return (
            f"With {reached.count(0)} of {len(reached)} seeds the LoRA ends no lower than it began, so that "
            "there is nothing to reach."
        )
    times = Spread.of(steps / taken for taken in reached if taken is not None)
    return f"It reaches the LoRA's final loss in {times} times fewer steps (paper: {PAPER:g})."


STUDY = Study(
    "moe_search",
    "Does a mixture of experts pay, against one LoRA of equal trainable parameters and tokens, when the "
    "settings of both are searched?",
    lambda materials: [],
    _find,
)


def main(
    data: Data,
    preset: Annotated[Literal["gpu", "cpu", "quick"], typer.Option(help="What is spent; see above.")] = "cpu",
    run: Run = KEPT,
    processes: Annotated[
        int, typer.Option(min=1, help="Trainings side by side: 8 on a GPU with 16 cores beside it.")
    ] = 1,
    base: options.Base = Settings.base,
    quantization: options.Quantize = None,
    device: options.Device = "auto",
    output: options.Output = RESULTS,
) -> None:
    held = cast(Quantization, options.held(base, quantization))
    settings = replace(PRESETS[preset], base=base, quantization=held)
    run_studies([STUDY], settings, data, run, output, device=device, processes=processes)


main.__doc__ = f"""{STUDY.question}

Each is searched at equal cost: learning rate, scale (alpha / sqrt(r), alpha / r and beyond), dropout; of the
mixture the gates' own rate and initial weights, their noise (on, annealed, off), the balance loss, top 1, 2
and all, and all before the top 2. The best learning rate has a worse one on either side, or the search goes
on. What it spends is a preset's; both searches end with trainings of {PRESETS["cpu"].steps} steps.

`gpu`: about {PRESETS["gpu"].about} steps of 8 rows. Ten minutes hold them at 15 steps a second, which the
default base may do on a GPU with `--device cuda --processes 8`: a step launches some 10,000 kernels of 3 to 4
microseconds, which one process needs 100 ms for. **Not yet run on a GPU.**

`cpu`: about {PRESETS["cpu"].about} steps of 4 rows, and one seed; at 2 s, on two cores with nothing else to
do, two and a half hours.

A killed command goes on where it was when it is given again.

A quick look: python -m benchmarks.experiments.moe_search --data DIR --preset quick
"""
app = options.application(main)

if __name__ == "__main__":
    app()
