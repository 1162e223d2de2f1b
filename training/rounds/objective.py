"""The loss: negative log-likelihood of the response tokens, the same for training and evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from brainstacks.layers.hooks import CompositionHooks, DeltaSource
from training.data.batches import TOKENS, Batch, collate, loss_batches
from training.data.encoding import Example
from training.runs.processes import ALONE, Processes

if TYPE_CHECKING:
    from transformers.cache_utils import Cache

SourcesOf = Callable[[Sequence[Example]], Sequence[DeltaSource]]
"""What composes a batch of these examples, one a row."""


def response_logits(model: Any, batch: Batch, past: Cache | None = None) -> Tensor:
    """Logits that predict each label of `batch`, row by row, in order.

    The head runs on the labelled positions alone: on a small model with a large vocabulary it would
    otherwise cost as much as the layers.

    Args:
        past: keys and values of what comes before each row; the row's own are added to it.

    Returns:
        [M, V] float32 (float64 of a float64 model), M the number of labels in the batch.
    """
    # Padding is on the right and attention is causal, so no real token sees any of it: without a mask the
    # attention takes its faster causal path. Positions that restart keep packed examples apart.
    hidden = model.get_decoder()(
        input_ids=batch.input_ids,
        position_ids=batch.position_ids,
        past_key_values=past,
        use_cache=past is not None,
    ).last_hidden_state
    logits: Tensor = model.get_output_embeddings()(hidden.flatten(0, 1)[batch.labelled])
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    softcap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    return logits if softcap is None else torch.tanh(logits / softcap) * softcap


def response_nll(model: Any, batch: Batch, past: Cache | None = None) -> Tensor:
    """NLL (nats) of each label of `batch`, row by row, in order: [M]; arguments and dtype as in
    `response_logits`."""
    labels = batch.labels.flatten()[batch.labelled]
    return F.cross_entropy(response_logits(model, batch, past), labels, reduction="none")


def row_sums(nll: Tensor, batch: Batch) -> Tensor:
    """Sum of `nll` [M] per row of `batch`, which is still on the CPU.

    Returns:
        [B] nats on the CPU, in the dtype of `nll`: there every sum is added in one order. CUDA's `index_add_`
        adds in any, and an outcome would not be the same twice.
    """
    rows, width = batch.labels.shape
    found = nll.cpu()
    return found.new_zeros(rows).index_add_(0, batch.labelled // width, found)


@torch.no_grad()
def mean_nll(
    model: Any,
    hooks: CompositionHooks,
    examples: Sequence[Example],
    sources: Sequence[DeltaSource] | SourcesOf = (),
    tokens: int = TOKENS,
    processes: Processes = ALONE,
) -> float:
    """Token-weighted mean NLL (nats) of the responses of `examples`, at least one, under `sources`.

    Independent of `tokens`, the budget of a forward, and of padding, up to rounding; bit for bit the same at
    every call, and with any number of `processes`, which share the forwards. The most memory goes to logits,
    of at most `tokens / LABEL_COST` positions or one row: see `batches.loss_batches`.
    """

    def nll(rows: Sequence[int]) -> float:
        group = [examples[i] for i in rows]
        batch = collate(group).to(model.device)
        composing = sources(group) if callable(sources) else sources
        with hooks.composed(*composing, responses=batch.responses):
            return float(response_nll(model, batch).double().sum())

    found = processes.shared(loss_batches(examples, tokens), nll, "measuring losses", "batches")
    return sum(found) / sum(len(example.response) for example in examples)
