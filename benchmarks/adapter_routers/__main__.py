"""What routers of adapters are worth on a registry of stacks, and what of it random stacks would give.

    python -m benchmarks.adapter_routers --data DIR --registry DIR

The validation records of the registry's domains, under the weights of each router, under all combinations of
stacks, and once more with random stacks of the same norms. Every loss is kept under `--run`: a command that
was stopped goes on there, and another router measures its own rows alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import process_time
from typing import Annotated

import torch
import typer

from benchmarks.adapter_routers.contest import TOP, Contest, Sizes
from benchmarks.adapter_routers.contestants import Contestant
from benchmarks.adapter_routers.figures import Figures, cost_table
from benchmarks.adapter_routers.kept_losses import KeptLosses
from benchmarks.instruments import options
from benchmarks.instruments.results import RESULTS, machine, write_results
from benchmarks.instruments.timing import Progress, say
from brainstacks.errors import ConfigError
from brainstacks.routing.features import decoder_states
from brainstacks.stacks.registry import Registry
from training.data.domains import prepare
from training.data.encoding import Example
from training.evaluation.validation import load_served
from training.recipe.recipe import load_recipe
from training.router.stacked_base import StackedBase

NAME = "adapter_routers"
PREFILL = "the base's prefill"


def costs(
    stacked: StackedBase, routers: Mapping[str, Contestant], examples: Sequence[Example]
) -> dict[str, list[float]]:
    """CPU milliseconds of all threads that each router takes for each prompt alone, its pass over the prompt
    included; one after another, prompt by prompt. The prefill of the base comes first.
    """

    @torch.no_grad()
    def prefill(prompt: Sequence[int]) -> None:
        decoder_states(stacked.base.model, input_ids=torch.tensor([list(prompt)], device=stacked.base.device))

    timed: dict[str, Callable[[Sequence[int]], object]] = {PREFILL: prefill}
    for name, router in routers.items():
        timed[name] = lambda prompt, router=router: router.apply(router.believe([prompt]))  # type: ignore[misc]
    for one in timed.values():
        one(examples[0].prompt)  # uncounted
    spent: dict[str, list[float]] = {name: [] for name in timed}
    for example in examples:
        for name, one in timed.items():
            start = process_time()
            one(example.prompt)
            spent[name].append(1000 * (process_time() - start))
    return spent


def main(
    data: Annotated[
        Path, typer.Option(help="Records: <domain>/{train,validation}.jsonl.", exists=True, file_okay=False)
    ],
    registry: Annotated[Path, typer.Option(help="Its active stacks and router.")] = options.DEMO_REGISTRY,
    recipe: Annotated[
        str, typer.Option(help="By which it was trained: splits, and tokens of a row.")
    ] = "demo",
    seeds: Annotated[
        str, typer.Option(help="Of records, prototypes and random stacks; separated by commas.")
    ] = "0,1,2",
    limit: Annotated[int, typer.Option(min=1, help="Validation records per domain and seed.")] = 12,
    prompts: Annotated[
        int, typer.Option(min=1, help="Training prompts per domain that make prototypes.")
    ] = 32,
    choosing: Annotated[
        int, typer.Option(min=1, help="Records per domain that choose a stack, and factors of layers.")
    ] = 6,
    run: Annotated[Path, typer.Option(help="Losses are kept here.")] = Path("runs/adapter_routers"),
    base: options.Base = options.DEFAULT_BASE,
    quantization: options.Quantize = None,
    device: options.Device = "auto",
    output: options.Output = RESULTS,
) -> None:
    """Ours, nearest prototype, Arrow, SpectR, LoGo and simple rules, beside the oracle over all combinations;
    and random stacks of the same norms in the place of the trained.

    A killed command goes on where it was when it is given again.

    A quick look: python -m benchmarks.adapter_routers --data DIR --seeds 0 --limit 1 --choosing 1
    """
    numbers = list(dict.fromkeys(options.number_list(seeds, "seeds")))
    facts = machine()
    plan = load_recipe(recipe)
    say("loading ...")
    served = Registry(registry)
    stacked, router = load_served(options.load(base, quantization, device), served)
    if router is None:
        raise ConfigError(
            f"{registry.name} has no router, and the contest is about it; train one, or take another"
        )
    records = prepare(plan, data, [plan.domain(domain) for domain in stacked.digests])
    identity = stacked.base.identity.fingerprint
    kept = KeptLosses(
        run / "losses.jsonl",
        {"base": identity, "quantization": stacked.base.quantization, "compute": stacked.base.dtype_name},
    )
    sizes, tokens = Sizes(limit, prompts, choosing), plan.data.max_tokens
    contest = Contest(stacked, router, served, records, kept, sizes, numbers, tokens)
    rounds = []
    progress = Progress(len(numbers))
    for seed in numbers:
        routers = contest.routers(seed)
        rounds.append(contest.round(seed, routers))
        progress.done(f"seed {seed}: {len(rounds[-1].examples)} records")
    say("timing ...")
    some = [example for found in contest.validation(numbers[-1]).values() for example in found[:4]]
    spent = costs(stacked, routers, some)
    figures = Figures(rounds, tuple(stacked.digests))
    settings = options.asked(
        base,
        quantization,
        device,
        recipe=Path(recipe).stem,
        seeds=numbers,
        limit=limit,
        prompts=prompts,
        choosing=choosing,
    )
    text = (
        f"Answer NLL of {sum(len(found.examples) for found in rounds)} validation records, the best router "
        "first; regret is to the best of all combinations of stacks at 1, record by record. Brackets: 95% "
        "intervals by a bootstrap over records, paired; what another seed would draw they do not know. Brier "
        "and ECE: what is told of a stack against whether it is in the record's best combination.\n\n"
        f"{figures.table()}\n\n"
        f"k of Arrow, SpectR and LoGo is {min(TOP, len(stacked.digests))}. Chosen, by seed: "
        f"{'; '.join(', '.join(f'{n}: {v}' for n, v in found.chosen.items()) for found in rounds)}.\n\n"
        "Random stacks of the same norms at the same weights, and their own oracle; mean NLL, less the "
        f"base's:\n\n{figures.control()}\n\n"
        f"A route of one prompt alone, its pass over the prompt included, for {len(some)} prompts:\n\n"
        f"{cost_table(spent)}"
    )
    document = {"machine": facts, "settings": settings, "stacks": dict(stacked.digests), **figures.to_dict()}
    write_results(NAME, {**document, "route_cpu_ms": spent}, text, output)


app = options.application(main)

if __name__ == "__main__":
    app()
