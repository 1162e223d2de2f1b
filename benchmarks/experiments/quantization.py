"""How much of what stacks transfer to other domains is repair of quantisation error.

    python -m benchmarks.experiments.quantization --data DIR

A stack that is trained on the NF4 base also repairs its quantisation error, which helps every domain alike.
Stacks are therefore trained on the unquantised base as well, and those trained on NF4 are put on it too:
there, what they repaired is not broken.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from benchmarks.experiments import designs
from benchmarks.experiments.laboratory import Laboratory
from benchmarks.experiments.materials import Materials
from benchmarks.experiments.measurements import (
    HOW_SURE,
    Measurements,
    Nats,
    Terms,
    answer_tokens,
    nats_under,
    throughout,
)
from benchmarks.experiments.settings import Settings
from benchmarks.experiments.study import Findings, Study, command
from benchmarks.experiments.trainings import Training
from benchmarks.instruments.results import markdown_table
from brainstacks.config import Quantization
from training.evaluation.intervals import Estimate
from training.recipe.settings import require

PLAIN: Quantization = "none"


def _cases(settings: Settings) -> dict[str, tuple[Quantization, Quantization]]:
    """Name -> (quantisation of the base trained on, of the base measured on)."""
    quantized = settings.quantization
    require(quantized != PLAIN, f"quantization is {PLAIN}, which this study compares with; give nf4 or int8")
    return {
        f"{quantized} stacks on {quantized}": (quantized, quantized),
        "unquantised stacks on unquantised": (PLAIN, PLAIN),
        f"{quantized} stacks on unquantised": (quantized, PLAIN),
    }


def _trainings(materials: Materials) -> list[Training]:
    settings = materials.settings
    return [
        training
        for quantization in dict.fromkeys(trained for trained, _ in _cases(settings).values())
        for seed in settings.seeds
        for training in designs.independent(settings, seed, quantization=quantization).values()
    ]


def _stack(case: str, domain: str) -> str:
    return f"{case}: {domain}"


def _measure(lab: Laboratory) -> Measurements:
    """Of each base, and of each stack of each case on it, all domains."""
    materials, settings = lab.materials, lab.settings
    nothing = throughout(settings.domains, {})
    nats: dict[str, list[Nats]] = {
        quantization: [nats_under(materials, lab.stacked({}, quantization), nothing)]
        for quantization in (settings.quantization, PLAIN)
    }
    for (case, (trained, measured)), seed in product(_cases(settings).items(), settings.seeds):
        stacks = designs.independent(settings, seed, quantization=trained)
        stacked = lab.stacked(stacks, measured)
        for domain in settings.domains:
            found = nats_under(materials, stacked, throughout(settings.domains, {domain: 1.0}))
            nats.setdefault(_stack(case, domain), []).append(found)
    return Measurements(answer_tokens(materials, settings.domains), nats)


def _gain(case: str, base: str, pairs: Sequence[tuple[str, str]]) -> Terms:
    """Mean gain over the base in domain i under the stack of j, for the `pairs` (i, j)."""
    share = 1 / len(pairs)
    return [term for i, j in pairs for term in ((base, i, share), (_stack(case, j), i, -share))]


def _transfer_table(measured: Measurements, case: str, base: str, domains: tuple[str, ...]) -> str:
    """NLL of domain i (row) under the stack of j (column), less that of the base."""
    rows = [
        [i, *(f"{-measured.estimate(_gain(case, base, [(i, j)])).value:+.3f}" for j in domains)]
        for i in domains
    ]
    return markdown_table([case, *domains], rows)


def _find(lab: Laboratory) -> Findings:
    settings, domains = lab.settings, lab.settings.domains
    measured = _measure(lab)
    cases = _cases(settings)
    own = [(d, d) for d in domains]
    other = [(i, j) for i, j in product(domains, domains) if i != j]
    gains = {
        (case, what): _gain(case, base, pairs)
        for case, (_, base) in cases.items()
        for what, pairs in (("own", own), ("other", other))
    }
    quantized, plain, moved = cases
    damage = measured.difference(settings.quantization, PLAIN)
    survives = {what: measured.ratio(gains[plain, what], gains[quantized, what]) for what in ("own", "other")}
    remains = {what: measured.ratio(gains[moved, what], gains[quantized, what]) for what in ("own", "other")}
    verdict = (
        f"On the unquantised base, stacks of other domains gain {_percent(survives['other'])} of what they "
        f"gain on {settings.quantization}, and a domain's own {_percent(survives['own'])}. Of the gain of "
        f"{settings.quantization} stacks {_percent(remains['own'])} (own domain) and "
        f"{_percent(remains['other'])} (other domains) remains on the unquantised base; the rest is repair. "
        f"Quantisation itself costs {damage} nats."
    )
    table = markdown_table(
        ["mean gain over the base, nats", "own domain", "other domains"],
        [[case, *(measured.estimate(gains[case, w]) for w in ("own", "other"))] for case in cases],
    )
    matrices = [_transfer_table(measured, case, base, domains) for case, (_, base) in cases.items()]
    text = "\n\n".join(
        (
            table,
            "NLL of the row's prompts under the column's stack, less that of the base; below 0 it helps:",
            *matrices,
            HOW_SURE + " Shares are of mean gains; they mean little where an interval of the gain holds 0.",
        )
    )
    figures = {
        "validation_nll": measured.to_dict(),
        "quantisation_costs": damage.to_dict(),
        "gains": {f"{c}, {what}": measured.estimate(terms).to_dict() for (c, what), terms in gains.items()},
        "share_on_unquantised": {what: found.to_dict() for what, found in survives.items()},
        "share_that_remains": {what: found.to_dict() for what, found in remains.items()},
        "repair_share_of_own_gain": 1 - remains["own"].value,
    }
    return Findings(verdict, text, figures)


def _percent(share: Estimate) -> str:
    low, high = share.interval
    return f"{share.value:.0%} [{low:.0%}, {high:.0%}]"


STUDY = Study(
    "quantization",
    "How much of what stacks give to other domains is repair of quantisation error?",
    _trainings,
    _find,
)
app = command(STUDY)

if __name__ == "__main__":
    app()
