"""The loss: negative log-likelihood of the response tokens, the same for training and evaluation."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from training.data import IGNORE, Batch


def response_nll(model: Any, batch: Batch) -> Tensor:
    """NLL (nats) of each label of `batch`, row by row, in order.

    The head runs on the labelled positions alone: on a small model with a large vocabulary it would
    otherwise cost as much as the layers.

    Returns:
        [M] float32, M the number of labels in the batch.
    """
    # Padding is on the right and attention is causal, so no real token sees any of it: without a mask the
    # attention takes its faster causal path.
    hidden = model.get_decoder()(input_ids=batch.input_ids, use_cache=False).last_hidden_state
    chosen = batch.labels != IGNORE
    logits = model.get_output_embeddings()(hidden[chosen]).float()
    softcap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    return F.cross_entropy(logits, batch.labels[chosen], reduction="none")


def row_sums(nll: Tensor, labels: Tensor) -> Tensor:
    """Sum of `nll` [M] per row of `labels` [B, T].

    Returns:
        [B] float32 nats.
    """
    rows = (labels != IGNORE).nonzero()[:, 0]
    return torch.zeros(labels.shape[0], device=nll.device).index_add_(0, rows, nll)
