"""The serving scheme that was published with the method ("Superposition"), to compare with.

One prompt at a time. Every projection is replaced by a module that keeps the frozen stacks of the route
in host memory. At each forward, and in each of these modules, every active delta goes

    host -> device,    out <- out + w_d * delta_{d,round}(x),    device -> host,

in a loop over domains, then over rounds. Inside a delta the experts' own weights are stacked anew at each
forward, all N experts are computed, also those that the gate drops, and each is multiplied by its gate:

    delta(x) = sum_e g_e * s * B_e (A_e x),    g = softmax(top-K of x G^T, others -inf).

(The experts are batched in one einsum, as in the published code; a Python loop over them is up to 1.8
times slower for one token on a CPU, and would flatter the comparison.)

It is written from the method's description, and shares with the server only what both must be given: the
quantised base and the stack files. No code of the server's own layers or engine is used.

Where device memory is host memory (a CPU without a GPU), a transfer is stood in for by a real copy of the
same bytes (`Tensor.to(copy=True)`). With `always_copy=False` it is what PyTorch makes of `Module.to` there:
a walk over the modules, without a copy.

Where it departs from what was published, it is to the scheme's advantage or for the result's sake: stacks
that a prompt needs stay in host memory afterwards (so that no run waits for the disk), the noise weights of
training are not carried along, stacks have the base's dtype, and weights are bound to stacks by domain name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from benchmarks.instruments.timing import Contestant, OnStep
from brainstacks.base_model import BaseModel
from brainstacks.errors import DomainNotFound
from brainstacks.stacks.artifact import StackMetadata, check_base, read_stack_metadata
from brainstacks.stacks.registry import Registry
from brainstacks.stacks.tensors import load_stack

GATE_THRESHOLD = 0.12
"""A domain with |weight| <= this is not applied (paper, section 5.3)."""

MOST_TOKENS = 8
"""Of a run: its rate is the same from token to token, and each takes a large part of a second."""

HOST = torch.device("cpu")


class Expert(nn.Module):
    """The factors A [r, d_in] and B [d_out, r] of one expert."""

    def __init__(self, A: Tensor, B: Tensor) -> None:
        super().__init__()
        self.A = _frozen_linear(A)
        self.B = _frozen_linear(B)


class ShuttledDelta(nn.Module):
    """One delta (a projection, a round), in host memory between forwards.

    Args:
        A: per expert [r, d_in].
        B: per expert [d_out, r].
        gate: [N, d_in].
        top_k: K, experts that the gate keeps per token.
        scaling: s = alpha / sqrt(r).
    """

    def __init__(
        self, A: Sequence[Tensor], B: Sequence[Tensor], gate: Tensor, *, top_k: int, scaling: float
    ) -> None:
        super().__init__()
        self.experts = nn.ModuleList(Expert(a, b) for a, b in zip(A, B, strict=True))
        self.gate = _frozen_linear(gate)
        self._top_k = top_k
        self._scaling = scaling

    def forward(self, x: Tensor) -> Tensor:
        """delta(x): [..., d_in] -> [..., d_out], in x's dtype."""
        flat = x.flatten(0, -2)
        logits = self.gate(flat)
        values, indices = logits.topk(self._top_k, dim=-1)
        sparse = torch.full_like(logits, float("-inf")).scatter(-1, indices, values)
        gates = sparse.float().softmax(dim=-1).to(x.dtype)
        experts = cast(Iterable[Expert], self.experts)
        A = torch.stack([expert.A.weight for expert in experts])
        B = torch.stack([expert.B.weight for expert in experts])
        hidden = torch.einsum("ti,nri->tnr", flat, A)
        outputs = torch.einsum("tnr,nor->tno", hidden, B) * self._scaling
        return (gates[..., None] * outputs).sum(dim=1).view(*x.shape[:-1], -1)


def _frozen_linear(weight: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight.clone(), requires_grad=False)
    return linear


class ShuttleProjection(nn.Module):
    """A frozen projection and the stacks that correct it.

    Attributes:
        stacks: domain -> its rounds. In a plain dict they are no submodules: they stay in host memory
            when the model moves.
        weights: domain -> weight of the prompt that is generated.
        always_copy: a transfer copies even where it stays in the same memory.
    """

    def __init__(self, frozen: nn.Module) -> None:
        super().__init__()
        self.frozen = frozen
        self.always_copy = True
        self.stacks: dict[str, list[ShuttledDelta]] = {}
        self.weights: Mapping[str, float] = {}

    def forward(self, x: Tensor) -> Tensor:
        """[..., d_in] -> [..., d_out]."""
        out: Tensor = self.frozen(x)
        for domain, weight in self.weights.items():
            if abs(weight) <= GATE_THRESHOLD:
                continue
            for delta in self.stacks[domain]:
                self._move(delta, x.device)
                out = out + weight * delta(x).to(out.dtype)
                self._move(delta, HOST)
        return out

    def _move(self, delta: ShuttledDelta, device: torch.device) -> None:
        if self.always_copy:
            # What `Module.to` does, except that it always copies.
            delta._apply(lambda tensor: tensor.to(device, copy=True))  # type: ignore[no-untyped-call]
        else:
            delta.to(device)


class ShuttleModel:
    """A base whose projections are replaced by `ShuttleProjection`s.

    Args:
        base: changed in place until `restore`; serve nothing else with it meanwhile.
        registry: where stacks are loaded from.
    """

    def __init__(self, base: BaseModel, registry: Registry) -> None:
        self._base = base
        self._registry = registry
        self._parents: dict[tuple[int, str], tuple[nn.Module, str]] = {}
        self._projections: dict[tuple[int, str], ShuttleProjection] = {}
        self._loaded: set[str] = set()
        keys = {id(site.module): key for key, site in base.sites.items()}
        for name, module in list(base.model.named_modules()):
            if id(module) in keys:
                parent, _, child = name.rpartition(".")
                key = keys[id(module)]
                self._parents[key] = (base.model.get_submodule(parent), child)
                self._projections[key] = ShuttleProjection(module)
        for key, (owner, child) in self._parents.items():
            setattr(owner, child, self._projections[key])

    def restore(self) -> None:
        """Put the base's own projections back."""
        for key, (parent, child) in self._parents.items():
            setattr(parent, child, self._projections[key].frozen)

    @torch.no_grad()
    def logits(self, input_ids: Tensor, weights: Mapping[str, float]) -> Tensor:
        """One forward of a single prompt.

        Args:
            input_ids: [1, T].
            weights: domain -> weight; a domain left out is not applied.

        Returns:
            [1, T, V] float32.

        Raises:
            DomainNotFound: the registry has no such domain.
        """
        self._compose(weights)
        output: Tensor = self._base.model(input_ids=input_ids, use_cache=False).logits
        return output.float()

    @torch.no_grad()
    def generate(
        self,
        prompt_ids: Sequence[int],
        weights: Mapping[str, float],
        tokens: int,
        *,
        always_copy: bool = True,
    ) -> Iterator[int]:
        """Greedy continuation of one prompt by exactly `tokens` tokens, each as it is chosen.

        Args:
            always_copy: see the module's docstring.

        Raises:
            DomainNotFound: the registry has no such domain.
        """
        self._compose(weights, always_copy)
        ids = torch.tensor([list(prompt_ids)], device=self._base.device)
        cache = None
        for _ in range(tokens):
            output = self._base.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = output.past_key_values
            ids = output.logits[:, -1].argmax(dim=-1, keepdim=True)
            yield int(ids)

    def _compose(self, weights: Mapping[str, float], always_copy: bool = True) -> None:
        """Load what the route needs, drop what it does not, and set the weights."""
        active = [domain for domain, weight in weights.items() if abs(weight) > GATE_THRESHOLD]
        for domain in self._loaded - set(active):
            self._unload(domain)
        for domain in active:
            if domain not in self._loaded:
                self._load(domain)
        for projection in self._projections.values():
            projection.weights = weights
            projection.always_copy = always_copy

    def _load(self, domain: str) -> None:
        domains = self._registry.snapshot().domains
        if domain not in domains:
            raise DomainNotFound(f"no domain {domain!r} in the registry; it has {', '.join(domains)}")
        path = self._registry.blob_path(domains[domain].current.digest)
        metadata = read_stack_metadata(path)
        identity = self._base.identity
        check_base(metadata, identity.fingerprint, identity.dims, identity.layers)
        tensors = {name: t.to(self._base.dtype) for name, t in load_stack(path).tensors.items()}
        for (layer, projection), module in self._projections.items():
            if projection in metadata.config.projections:
                deltas = self._deltas(tensors, metadata, f"layers.{layer}.{projection}")
                module.stacks[domain] = list(deltas)
            else:
                module.stacks[domain] = []
        self._loaded.add(domain)

    def _deltas(
        self, tensors: Mapping[str, Tensor], metadata: StackMetadata, where: str
    ) -> Iterable[ShuttledDelta]:
        """The rounds of one projection, with the file's stacked factors taken apart by expert."""
        config = metadata.config
        for number in range(metadata.rounds):
            name = f"rounds.{number}.{where}"
            yield ShuttledDelta(
                tensors[f"{name}.A"].split(config.rank, dim=0),
                tensors[f"{name}.B"].split(config.rank, dim=1),
                tensors[f"{name}.gate"],
                top_k=config.top_k,
                scaling=config.scaling,
            )

    def _unload(self, domain: str) -> None:
        for projection in self._projections.values():
            del projection.stacks[domain]
        self._loaded.remove(domain)


def shuttle_stream(
    shuttle: ShuttleModel, prompt: Sequence[int], weights: Mapping[str, float], *, always_copy: bool = True
) -> Contestant:
    """One prompt, since it takes no more at a time: its rate is that of any number of streams."""

    def generate(tokens: int, on_step: OnStep) -> None:
        for token in shuttle.generate(tuple(prompt), weights, tokens, always_copy=always_copy):
            on_step({0: [token]})

    return Contestant(generate, most_tokens=MOST_TOKENS)
