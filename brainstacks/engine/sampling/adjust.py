"""What becomes of logits before a token is chosen: grammars, penalties, bias, forbidden tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from brainstacks.engine.completion import Completion


def constrain(logits: Tensor, rows: Sequence[Completion]) -> Tensor:
    """-inf for what the rows' grammars do not allow, before everything else: a penalty or a bias cannot bring
    it back, and top-k, top-p and min-p count what is allowed.

    Returns:
        [R, V] float32; `logits` itself where no row has a grammar.
    """
    masks = {at: row.matcher.mask() for at, row in enumerate(rows) if row.matcher is not None}
    if not masks:
        return logits
    where = torch.tensor(list(masks), device=logits.device)
    allowed = torch.stack(list(masks.values())).to(logits.device)
    constrained = logits.clone()
    constrained[where] = constrained[where].masked_fill(~allowed, float("-inf"))
    return constrained


def adjust(logits: Tensor, rows: Sequence[Completion]) -> Tensor:
    """Penalties, bias and forbidden tokens, in OpenAI's and vLLM's order.

    For a token seen in prompt or output: l > 0 ? l / repetition : l * repetition; then for one seen n times
    in the output: - n * frequency - (n > 0) * presence; then + bias; then -inf if it may not be chosen (now).

    Returns:
        [R, V] float32; `logits` itself when there is nothing to do. Finite where `logits` is, but for -inf.
    """
    todo = [(at, row) for at, row in enumerate(rows) if row.sampling_state.adjusts(row.output_ids)]
    if not todo:
        return logits
    adjusted = logits.clone()
    flat = adjusted.view(-1)

    def places(pieces: list[tuple[int, Tensor]]) -> Tensor:
        """Indices into `flat` of (row, its token ids)."""
        return torch.cat([at * logits.shape[-1] + ids for at, ids in pieces]).to(logits.device)

    penalised = [
        (at, row.request.sampling, *row.sampling_state.seen(row.output_ids))
        for at, row in todo
        if row.sampling_state.penalised
    ]
    if penalised:
        where = places([(at, ids) for at, _, ids, _ in penalised])
        counts = torch.cat([counts for *_, counts in penalised]).to(logits.device)
        options = torch.tensor(
            [(p.repetition_penalty, p.frequency_penalty, p.presence_penalty) for _, p, _, _ in penalised]
        )
        sizes = torch.tensor([len(ids) for _, _, ids, _ in penalised])
        repetition, frequency, presence = (
            options.repeat_interleave(sizes, dim=0).to(logits.device).unbind(dim=1)
        )
        values = flat[where]
        values = torch.where(values > 0, values / repetition, values * repetition)
        values -= frequency * counts + presence * (counts > 0)
        flat[where] = values.clamp(max=torch.finfo(values.dtype).max)
    biased = [(at, row.sampling_state) for at, row in todo if len(row.sampling_state.bias_ids)]
    if biased:
        where = places([(at, state.bias_ids) for at, state in biased])
        flat[where] += torch.cat([state.bias for _, state in biased]).to(logits.device)
    for at, allowed in [(at, row.sampling_state.allowed) for at, row in todo]:
        if len(allowed):
            kept = adjusted[at, allowed.to(logits.device)]
            adjusted[at].fill_(float("-inf"))
            adjusted[at, allowed.to(logits.device)] = kept
    barred = [(at, row.sampling_state.barred(row.output_ids, held=_held(row))) for at, row in todo]
    flat[places(barred)] = float("-inf")
    return adjusted


def _held(row: Completion) -> bool:
    """Whether it may not end yet; where its grammar lets nothing else follow, it may."""
    if row.sampling_state.may_end(row.output_ids):
        return False
    if row.matcher is None:
        return True
    others = row.matcher.mask().clone()
    others[row.sampling_state.forbidden] = False
    return bool(others.any())
