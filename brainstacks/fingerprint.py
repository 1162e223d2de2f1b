"""The identity of a base's weights: one value however they are cut into files, quantised, or loaded."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from brainstacks.config import PROJECTIONS
from brainstacks.errors import UnsupportedModel

_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"

_DIMENSIONS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
)


def fingerprint(directory: Path, config: Any) -> str:
    """sha256 over the dimensions and the tensors that no quantisation touches (embeddings, norms, biases).

    Read from the checkpoint's files and taken as bfloat16, so that neither `quantization` nor `dtype`
    changes it. A tied `lm_head` is the embedding, and is not read twice.

    Args:
        config: the text model's configuration.

    Raises:
        UnsupportedModel: the checkpoint has no safetensors, or its index is damaged.
    """
    digest = hashlib.sha256()
    dims = {key: getattr(config, key, None) for key in _DIMENSIONS}
    digest.update(json.dumps(dims, sort_keys=True).encode())
    tied = bool(getattr(config, "tie_word_embeddings", False))
    where: dict[str, tuple[Path, str]] = {}
    for path in weight_files(directory):
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 -- safe_open is no mapping
                role = _text_role(key)
                if role is not None and not (tied and role == "lm_head.weight"):
                    where[role] = (path, key)
    for role, (path, key) in sorted(where.items()):
        with safe_open(path, framework="pt") as file:
            tensor = file.get_tensor(key).to(torch.bfloat16).contiguous()
        digest.update(f"{role}{tuple(tensor.shape)}".encode())
        digest.update(tensor.view(torch.uint8).numpy())
    return digest.hexdigest()


def weight_files(directory: Path) -> list[Path]:
    """The files that transformers loads: model.safetensors, or those that its index lists, and no others.

    Raises:
        UnsupportedModel: there is neither, the index is damaged, or a file that it lists is missing.
    """
    if (directory / _WHOLE).is_file():
        return [directory / _WHOLE]
    index = directory / _INDEX
    if not index.is_file():
        raise UnsupportedModel(
            f"{directory.name!r} has no safetensors weights; convert the model to safetensors"
        )
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        files = [directory / Path(name).name for name in names]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnsupportedModel(
            f"{directory.name!r}: {_INDEX} is damaged ({error}); fetch it again"
        ) from error
    missing = [path.name for path in files if not path.is_file()]
    if missing or not files:
        raise UnsupportedModel(
            f"{directory.name!r} lacks {', '.join(missing) or 'weights'}, which {_INDEX} lists; fetch them"
        )
    return files


def _text_role(key: str) -> str | None:
    """The tensor's place in the text model, whatever prefix the checkpoint gives it; None when not hashed."""
    parts = key.split(".")
    if "vision_tower" in parts or "multi_modal_projector" in parts or "vision_model" in parts:
        return None
    if any(p in PROJECTIONS for p in parts) and parts[-1] != "bias":
        return None
    for anchor in ("layers", "embed_tokens", "norm", "lm_head"):
        if anchor in parts:
            return ".".join(parts[parts.index(anchor) :])
    return None
