"""PEFT's LoRAs of tiny bases: made and saved by PEFT, trained by nobody but random everywhere."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor

from brainstacks.base_identity import BaseIdentity
from brainstacks.errors import BrainstacksError, InvalidArtifact
from brainstacks.stacks.peft_import import import_adapter
from tests.stacks.published import DIMS
from tests.tiny import tiny_model

BASE = BaseIdentity("tiny", "f" * 64, "llama", 2, DIMS, 32)
IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6], [2, 7, 1, 8, 2, 8, 1, 8]])


@contextmanager
def quiet() -> Iterator[None]:
    """Without what PEFT says about a spelling that it will have to change."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        yield


def save_adapter(
    directory: Path,
    family: str = "llama",
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    **settings: Any,
) -> Path:
    """A random LoRA of `tiny_model(family)`; `settings` are those of `LoraConfig`."""
    config = peft.LoraConfig(**{"r": 3, "lora_alpha": 6, "task_type": "CAUSAL_LM"} | settings)
    with quiet():
        model = peft.get_peft_model(tiny_model(family), config)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if "lora_" in name:
                values = torch.randn(parameter.shape, generator=random) * parameter.shape[-1] ** -0.5
                parameter.data = values.to(dtype)
        model.save_pretrained(directory)
    return directory


def configure(adapter: Path, **changes: Any) -> None:
    """Change fields of its configuration."""
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def load_adapters(adapters: Mapping[str, Path], family: str = "llama") -> Any:
    """PEFT's model of `tiny_model(family)` with these adapters, of which the first is active."""
    (first, path), *others = adapters.items()
    with quiet():
        model = peft.PeftModel.from_pretrained(tiny_model(family), path, adapter_name=first)
        for name, other in others:
            model.load_adapter(other, adapter_name=name)
    return model.eval()


@torch.no_grad()
def peft_logits(model: Any, ids: Tensor = IDS) -> Tensor:
    logits: Tensor = model(input_ids=ids, use_cache=False).logits
    return logits


def refusal(adapter: Path, kind: type[BrainstacksError] = InvalidArtifact) -> str:
    """What the import says when it refuses, and leaves no file."""
    output = adapter.with_suffix(".safetensors")
    with pytest.raises(kind) as caught:
        import_adapter(adapter, BASE, "math", output, lambda _: None)
    assert not output.exists()
    assert caught.type is kind
    return caught.value.message
