"""What a faster or smaller base costs in quality: answer NLL of the base alone, through the engine, by
variant; and its speed and bytes beside.

    python -m benchmarks.nll --data DATA

Every variant scores the same records, one after another, record by record: differences are paired, and a
disturbance of the machine meets all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.instruments import options
from benchmarks.instruments.results import RESULTS, Spread, machine, markdown_table, met, write_results
from benchmarks.instruments.roofline import base_bytes
from benchmarks.instruments.timing import Progress, say, timed
from benchmarks.serving.asking import Score, score
from benchmarks.serving.engine_batch import engine_batch
from brainstacks.config import EngineConfig, from_mapping
from brainstacks.engine.engine import StepEngine
from brainstacks.errors import ConfigError
from brainstacks.tokenizer import ChatTokenizer
from training.data.encoding import Example, encode
from training.data.sources import load_directory
from training.evaluation.intervals import interval, resampled_nll

NAME = "nll"
MOST_DIFFERENCE = 0.005
"""Rule: a variant's mean NLL differs from the reference's by no more (nats per answer token)."""

DECODED = 32
"""Tokens of a run that measures the speed of decoding, after each domain."""

MEAN = "mean"
"""Of the domains, beside their names."""


@dataclass(frozen=True)
class Variant:
    """A base and an engine.

    Attributes:
        quantization: as the server names it.
        engine: fields of `EngineConfig`.
        of: the variant that computes with the same values exactly; None for one that does.
    """

    quantization: str
    engine: Mapping[str, Any] = field(default_factory=dict)
    of: str | None = None


EXACT = {"exact": True}
VARIANTS = {
    "nf4-exact": Variant("nf4", EXACT),
    "nf4": Variant("nf4", of="nf4-exact"),
    "native-exact": Variant("native", EXACT),
    "native": Variant("native", of="native-exact"),
    "int8-exact": Variant("int8", EXACT),
    "int8": Variant("int8", of="int8-exact"),
    "none": Variant("none"),
}
"""By name. One is compared with the one that it is of, where that is asked for too, else with the first."""


@dataclass(frozen=True)
class Scores:
    """Of one domain, record by record.

    Attributes:
        examples: R records.
        scores: variant -> R scores.
        decoded: variant -> tokens per second of one stream behind the first record's prompt.
    """

    examples: Sequence[Example]
    scores: Mapping[str, Sequence[Score]]
    decoded: Mapping[str, float]

    @property
    def answer_tokens(self) -> list[int]:
        return [len(example.response) for example in self.examples]

    def nll(self, variant: str) -> float:
        """Nats per answer token."""
        return sum(score.nats for score in self.scores[variant]) / sum(self.answer_tokens)

    def resampled(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """[S, V] NLL of bootstrap resamples of the records, the same for all variants."""
        nats = [[score.nats for score in record] for record in zip(*self.scores.values(), strict=True)]
        return resampled_nll(nats, self.answer_tokens)


def validation_examples(
    data: Path, tokenizer: ChatTokenizer, records: int, max_tokens: int
) -> dict[str, list[Example]]:
    """Domain -> the first `records` of its validation split, as `brainstacks-train evaluate` encodes them.

    Args:
        data: `<domain>/{train,validation}.jsonl`.
        max_tokens: of prompt and answer; a longer answer is cut.

    Raises:
        ConfigError: there is no domain, or one has no validation record that fits.
    """
    found: dict[str, list[Example]] = {}
    for directory in sorted(path for path in data.iterdir() if path.is_dir()):
        validation = load_directory(directory).validation or []
        found[directory.name] = encode(validation[:records], tokenizer, max_tokens)
        if not found[directory.name]:
            raise ConfigError(
                f"domain {directory.name!r} has no validation record that fits {max_tokens} tokens; give "
                "validation.jsonl, or more tokens"
            )
    if not found:
        raise ConfigError(f"{data.name!r} has no directory of a domain; it holds <domain>/validation.jsonl")
    return found


def measure(
    engines: Mapping[str, StepEngine], examples: Mapping[str, Sequence[Example]]
) -> dict[str, Scores]:
    """Every record of every domain (domain -> records) by every variant, in turn."""
    for engine in engines.values():  # uncounted: packs and compiles what later requests find ready
        score(engine, next(iter(examples.values()))[0])
    found: dict[str, Scores] = {}
    progress = Progress(len(examples))
    for domain, records in examples.items():
        scores: dict[str, list[Score]] = {name: [] for name in engines}
        for record in records:
            for name, engine in engines.items():
                scores[name].append(score(engine, record))
        prompt = records[0].prompt
        runs = {
            name: timed(engine_batch(engine, [prompt], [{}]), DECODED) for name, engine in engines.items()
        }
        decoded = {name: run.rate for name, run in runs.items()}
        found[domain] = Scores(records, scores, decoded)
        progress.done(f"{domain}: " + ", ".join(f"{name} {found[domain].nll(name):.4f}" for name in engines))
    return found


def compare(found: Mapping[str, Scores], variants: Sequence[str]) -> list[dict[str, Any]]:
    """Each variant less the one that it is of, with 95% intervals: per domain, and their mean."""
    drawn = {domain: scores.resampled() for domain, scores in found.items()}
    nll = {domain: np.array([scores.nll(v) for v in variants]) for domain, scores in found.items()}
    drawn[MEAN] = np.mean(list(drawn.values()), axis=0)
    nll[MEAN] = np.mean(list(nll.values()), axis=0)
    documents = []
    for column, variant in enumerate(variants):
        of = VARIANTS[variant].of if variant in VARIANTS else None
        against = variants.index(of) if of in variants else 0
        rate = sum(sum(map(len, each.examples)) for each in found.values()) / sum(
            score.seconds for each in found.values() for score in each.scores[variant]
        )
        documents.append(
            {
                "variant": variant,
                "of": variants[against],
                "nll": {domain: float(values[column]) for domain, values in nll.items()},
                "difference": {
                    domain: {
                        "nats": float(values[column] - values[against]),
                        "interval": interval(drawn[domain][:, column] - drawn[domain][:, against]),
                    }
                    for domain, values in nll.items()
                },
                "tokens_per_second": round(rate, 1),
                "decoded_per_second": Spread.of(each.decoded[variant] for each in found.values()),
            }
        )
    return documents


def table(documents: Sequence[Mapping[str, Any]]) -> str:
    header = ["variant", "domain", "NLL", "less", "", "95% interval", "", "scored, tok/s", "decoded", "MB"]
    rows: list[list[object]] = []
    for document in documents:
        for domain, nll in document["nll"].items():
            row: list[object] = [document["variant"], domain, f"{nll:.4f}", "", "", "", "", "", "", ""]
            if document["variant"] != document["of"]:
                difference = document["difference"][domain]
                low, high = difference["interval"]
                row[3:6] = [document["of"], f"{difference['nats']:+.4f}", f"{low:+.4f}..{high:+.4f}"]
            if domain == MEAN:
                row[6:8] = [_verdict(document), document["tokens_per_second"]]
                row[8:] = [document["decoded_per_second"], document["step_megabytes"]]
            rows.append(row)
    return markdown_table(header, rows)


def _verdict(document: Mapping[str, Any]) -> str:
    """The rule is for what computes with the same values."""
    variant = VARIANTS.get(document["variant"])
    if document["variant"] == document["of"] or (variant is not None and variant.of is None):
        return ""
    return met(abs(document["difference"][MEAN]["nats"]) <= MOST_DIFFERENCE)


def main(
    data: Annotated[
        Path, typer.Option(help="Records: <domain>/{train,validation}.jsonl.", exists=True, file_okay=False)
    ],
    records: Annotated[int, typer.Option(min=1, help="Validation records per domain, at most.")] = 100,
    variants: Annotated[
        str, typer.Option(help="Separated by commas; the first one is the reference.")
    ] = ",".join(VARIANTS),
    max_tokens: Annotated[int, typer.Option(min=16, help="Of prompt and answer.")] = 512,
    base: options.Base = options.DEFAULT_BASE,
    device: options.Device = "auto",
    output: options.Output = RESULTS,
) -> None:
    """Answer NLL on validation records, base alone, by variant, and what each differs from its exact form.

    The rule: the mean over domains differs by no more than 0.005 nats per answer token. Beside it
    stand how many tokens per second one request reads and scores, how many it decodes, and the weights that a
    step reads.

    A quick look: python -m benchmarks.nll --data DATA --records 4
    """
    options.some_of(variants, tuple(VARIANTS))
    names = variants.split(",")
    facts = machine()
    engines: dict[str, StepEngine] = {}
    for name in names:
        say(f"loading {name} ...")
        variant = VARIANTS[name]
        config = from_mapping(EngineConfig, {"max_batch_size": 1, "prefix_caching": False, **variant.engine})
        engines[name] = StepEngine(options.load(base, variant.quantization, device), None, config)
    tokenizer = engines[names[0]].base.chat_tokenizer()
    found = measure(engines, validation_examples(data, tokenizer, records, max_tokens))
    documents = compare(found, names)
    for document in documents:
        engine = engines[document["variant"]]
        document |= {"backend": engine.backend.name, "step_megabytes": round(base_bytes(engine) / 1e6)}
    chosen = options.asked(
        base, "as each variant says", device, records=records, variants=names, max_tokens=max_tokens
    )
    counts = {domain: len(scores.examples) for domain, scores in found.items()}
    text = (
        f"NLL in nats per answer token of {sum(counts.values())} validation records; intervals by a "
        f"bootstrap over records, paired. Rule: |difference of the mean| <= {MOST_DIFFERENCE:g}.\n\n"
        "Tokens per second of one request: read and scored; decoded (median (min..max) of "
        f"{len(found)} runs of {DECODED} tokens). MB: of weights that a step reads.\n\n"
        f"{table(documents)}"
    )
    write_results(
        NAME,
        {
            "machine": facts,
            "settings": chosen,
            "records": counts,
            "rule": MOST_DIFFERENCE,
            "variants": documents,
        },
        text,
        output,
    )


app = options.application(main)

if __name__ == "__main__":
    app()
