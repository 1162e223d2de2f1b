"""Whether the cuda backend computes on this GPU what others do elsewhere: whole requests, token for token.

    python -m benchmarks.gpu_check

The same requests, of mixed compositions, are answered in float32 by PyTorch on the CPU (the reference), by
PyTorch on the GPU, and by the cuda backend with CUDA graphs and without, together and one by one, and
deterministic. Texts may part where two tokens are as likely but for rounding: how far each agrees is shown.
What has to be the same to the last bit (a deterministic answer alone and in a crowd, graphs on and off) fails
the command where it is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import torch
import typer

from benchmarks.instruments import options
from benchmarks.instruments.registries import Served, served
from benchmarks.instruments.results import RESULTS, machine, markdown_table, write_results
from benchmarks.instruments.timing import say
from benchmarks.serving import traffic
from benchmarks.serving.engine_batch import advance, fixed, request
from brainstacks.base_model import identify_base, load_base
from brainstacks.config import EngineConfig
from brainstacks.engine.engine import StepEngine
from brainstacks.engine.request import TextEvent
from brainstacks.errors import BrainstacksError
from brainstacks.gpu_kernels.launch import INTERPRETED

NAME = "gpu_check"
Texts = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Agreement:
    """Attributes:
    same, of: tokens that agree from the front, of all; texts: whole texts that do.
    exact: all must.
    """

    contestant: str
    against: str
    same: int
    of: int
    texts: int
    exact: bool

    @property
    def holds(self) -> bool:
        return not self.exact or self.same == self.of


def agreement(
    contestant: str, found: Texts, against: str, wanted: Texts, *, exact: bool = False
) -> Agreement:
    """Of two sets of texts."""
    same = 0
    for one, other in zip(found, wanted, strict=True):
        parts = [a == b for a, b in zip(one, other, strict=True)]
        same += parts.index(False) if False in parts else len(parts)
    texts = sum(one == other for one, other in zip(found, wanted, strict=True))
    return Agreement(contestant, against, same, sum(map(len, wanted)), texts, exact)


class Bench:
    """The requests, and engines that answer them.

    Args:
        rows, tokens, prompt: how many; of each answer; of the longest prompt.
    """

    def __init__(self, base: str, stacks: Served, rows: int, tokens: int, prompt: int) -> None:
        self._name, self._stacks, self._rows, self._tokens = base, stacks, rows, tokens
        self._prompt = prompt

    def texts(self, device: str, *, apart: bool = False, **changes: Any) -> Texts:
        """Of all requests in one crowd, or `apart`."""
        say(f"answers on {device}, {changes}{', one by one' if apart else ''}")
        base = load_base(self._name, quantization="none", device=device, dtype=torch.float32)
        config = EngineConfig(max_batch_size=self._rows, prefix_caching=False, **changes)
        engine = StepEngine(base, self._stacks.registry, config)
        # Of several lengths, so that some decode while others are read.
        prompts = [
            prompt[: 1 + self._prompt * (at + 1) // self._rows]
            for at, prompt in enumerate(
                traffic.random_prompts(base.vocab_size, self._prompt + 1, self._rows, seed=0)
            )
        ]
        rows = [{}, *traffic.distinct(self._stacks.random, self._rows - 1, seed=0)]
        requests = [
            request(f"row-{at}", prompt, self._tokens, fixed(weights))
            for at, (prompt, weights) in enumerate(zip(prompts, rows, strict=True))
        ]
        found: dict[str, list[int]] = {one.request_id: [] for one in requests}
        for crowd in [[one] for one in requests] if apart else [requests]:
            for one in crowd:
                engine.add(one, _into(found[one.request_id]))
            while engine.has_work:
                advance(engine)
        return tuple(tuple(ids) for ids in found.values())


def _into(ids: list[int]) -> Any:
    def sink(reply: object) -> None:
        if isinstance(reply, BrainstacksError):
            raise reply
        if isinstance(reply, TextEvent):
            ids.extend(reply.token_ids)

    return sink


def compare(bench: Bench, device: str) -> list[Agreement]:
    """Everything against what it ought to agree with."""
    reference = bench.texts("cpu", backend="torch")
    plain = bench.texts(device, backend="torch")
    graphs = bench.texts(device, backend="cuda")
    launched = bench.texts(device, backend="cuda", cuda_graphs=False)
    alone = bench.texts(device, backend="cuda", apart=True)
    crowd = bench.texts(device, backend="cuda", deterministic=True)
    apart = bench.texts(device, backend="cuda", deterministic=True, apart=True)
    return [
        agreement("torch", plain, "torch on the CPU", reference),
        agreement("cuda", graphs, "torch on the CPU", reference),
        agreement("cuda, one by one", alone, "cuda", graphs),
        agreement("cuda without graphs", launched, "cuda", graphs, exact=True),
        agreement("deterministic, one by one", apart, "deterministic", crowd, exact=True),
        agreement("deterministic", crowd, "torch on the CPU", reference),
    ]


def table(found: Sequence[Agreement]) -> str:
    rows = [
        (one.contestant, one.against, f"{one.same} of {one.of}", one.texts, "yes" if one.exact else "",
         "" if one.holds else "DIFFERS")
        for one in found
    ]  # fmt: skip
    return markdown_table(("contestant", "against", "same tokens", "same texts", "must be", ""), rows)


def main(
    rows: Annotated[int, typer.Option(min=2, help="Requests at a time.")] = 8,
    tokens: options.RunTokens = 32,
    prompt_tokens: options.PromptTokens = 300,
    rank: Annotated[int, typer.Option(min=1, help="Of the random stacks.")] = 16,
    base: options.Base = options.DEFAULT_BASE,
    device: options.Device = "cuda",
    output: options.Output = RESULTS,
) -> None:
    """Whole requests on the cuda backend against PyTorch's."""
    if not torch.cuda.is_available() and not (device == "cpu" and INTERPRETED):
        raise typer.BadParameter(
            "no CUDA device is there; a rehearsal is TRITON_INTERPRET=1 and --device cpu"
        )
    with served(identify_base(base), random=4, rank=rank) as stacks:
        found = compare(Bench(base, stacks, rows, tokens, prompt_tokens), device)
    asked = options.asked(base, "none", device, rows=rows, tokens=tokens, prompt_tokens=prompt_tokens)
    document = {"machine": machine(), "settings": asked, "agreement": [asdict(one) for one in found]}
    write_results(NAME, document, table(found), output)
    if not all(one.holds for one in found):
        raise typer.Exit(1)


app = options.application(main)

if __name__ == "__main__":
    app()
