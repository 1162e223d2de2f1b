"""Tiny bases of every supported family, tiny stacks and routers for them, and the plain maths as an oracle.

Everything is random but seeded, float32, and small enough that a whole model runs in milliseconds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from brainstacks.base_identity import BaseIdentity
from brainstacks.config import MetaRouterConfig, StackConfig
from brainstacks.layers.bank import StackBank
from brainstacks.layers.delta import reference_delta
from brainstacks.layers.packed_stack import StackTensors
from brainstacks.layers.projections import find_sites
from brainstacks.routing.meta_router import MetaRouter
from brainstacks.stacks.artifact import StackMetadata, stack_shapes
from brainstacks.stacks.manifest import Published
from brainstacks.stacks.registry import Registry
from brainstacks.stacks.router_artifact import RouterMetadata
from brainstacks.stacks.tensors import save_router, save_stack

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text")
WINDOW = 8
"""Tokens that a sliding-window layer of the Mistral and Gemma bases looks back."""
VOCAB = 259
END_OF_TEXT, START, END = 256, 257, 258
"""Special tokens of the byte tokenizer, after the 256 bytes."""

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


# --- bases ---------------------------------------------------------------------------------------


def tiny_config(family: str = "llama", **changes: Any) -> Any:
    from transformers import AutoConfig

    if family == "gemma3":  # which sees pictures besides
        seeing = {
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
        }
        text = tiny_config("gemma3_text", **changes).to_dict()
        return AutoConfig.for_model(family, text_config=text, vision_config=seeing)
    values: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": END,
        "pad_token_id": END_OF_TEXT,
    }
    if family == "mistral":
        values["sliding_window"] = WINDOW
    if family == "gemma2":
        values |= {"attn_logit_softcapping": 2.0, "final_logit_softcapping": None}
    if family.startswith("gemma"):
        values |= {
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention", "full_attention"],
            "query_pre_attn_scalar": 8,
        }
    return AutoConfig.for_model(family, **values | changes)


def tiny_model(family: str = "llama", seed: int = 0, **changes: Any) -> Any:
    """A random model whose greedy text is varied: weights are far larger than at the start of a training."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(tiny_config(family, **changes))
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            scale = 0.1 if "norm" in name or name.endswith("bias") else 1.5 * parameter.shape[-1] ** -0.5
            offset = 1.0 if "norm" in name and not family.startswith("gemma") else 0.0
            parameter.copy_(offset + scale * torch.randn(parameter.shape, generator=random))
    return model.eval().requires_grad_(False)


def byte_tokenizer() -> Any:
    """One token per byte, three special tokens, and a ChatML template."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from brainstacks.tokenizer import _BYTE_OF

    tokenizer = Tokenizer(models.BPE(vocab=dict(_BYTE_OF), merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    tokenizer.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in specials])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=specials[0],
        eos_token=specials[2],
        extra_special_tokens={"start_token": specials[1]},
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def save_base(
    directory: Path, family: str = "llama", seed: int = 0, *, tokenizer: bool = True, **changes: Any
) -> Path:
    """Write a tiny base, by default with its tokenizer, as a directory that `load_base` reads."""
    tiny_model(family, seed, **changes).save_pretrained(directory)
    if tokenizer:
        byte_tokenizer().save_pretrained(directory)
    return directory


# --- stacks and routers --------------------------------------------------------------------------


def stack_config(**changes: Any) -> StackConfig:
    return StackConfig(**{"rank": 2, "alpha": 4.0, "experts": 3, "top_k": 2, "layers": 2, **changes})


def random_stack(
    dims: Mapping[str, tuple[int, int]],
    seed: int,
    rounds: int = 1,
    config: StackConfig | None = None,
    size: float = 0.5,
) -> StackTensors:
    """A stack whose deltas are about `size` times as large as their input."""
    config = config or stack_config()
    random = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in stack_shapes(_metadata("any", rounds, config, dims, None)):
        width = shape[1] if not name.endswith("B") else config.rank
        scale = size / config.scaling if name.endswith("B") else 1.0
        tensors[name] = scale * torch.randn(shape, generator=random) * width**-0.5
    return StackTensors(config, rounds, tensors)


def bank_of(stacks: Mapping[Any, StackTensors], dtype: torch.dtype = torch.float32) -> StackBank:
    """A bank on the CPU that holds `stacks` (key -> stack)."""
    bank = StackBank(torch.device("cpu"), dtype)
    for key, stack in stacks.items():
        bank.add(key, stack)
    return bank


def _metadata(
    domain: str,
    rounds: int,
    config: StackConfig,
    dims: Mapping[str, tuple[int, int]],
    base: BaseIdentity | None,
) -> StackMetadata:
    ref = (base or BaseIdentity("tiny", "f" * 64, "llama", config.layers, dims, 32)).ref
    present = {projection: dims[projection] for projection in config.projections}
    return StackMetadata(domain=domain, rounds=rounds, config=config, dims=present, base=ref)


def write_stack(path: Path, base: BaseIdentity, domain: str, stack: StackTensors) -> Path:
    save_stack(path, _metadata(domain, stack.rounds, stack.config, base.dims, base), stack.tensors)
    return path


def publish_stack(
    registry: Registry, base: BaseIdentity, domain: str, stack: StackTensors, directory: Path
) -> Published:
    return registry.publish(write_stack(directory / f"{domain}.safetensors", base, domain, stack))


def write_router(path: Path, registry: Registry, base: BaseIdentity, seed: int = 0, **changes: Any) -> Path:
    """A random router over every domain of `registry`, trained (as it were) with their active stacks."""
    stacks, _ = registry.snapshot().serving
    config = MetaRouterConfig(
        **{"domains": tuple(stacks), "token_dim": base.hidden_size, "hidden_dim": 16, **changes}
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = MetaRouter(config)
    chosen = {domain: stacks[domain] for domain in config.domains}
    save_router(path, RouterMetadata(config=config, stacks=chosen, base=base.ref), network.state_dict())
    return path


# --- the oracle ----------------------------------------------------------------------------------


PlainStack = tuple[StackTensors, float] | tuple[StackTensors, float, int]
"""Stack, weight, and the position of the first token that it acts on: 0 where that is left out."""


@contextmanager
def plainly_composed(model: nn.Module, stacks: Sequence[PlainStack]) -> Iterator[None]:
    """Within the block every row of `model` is composed of `stacks`, by `reference_delta`."""
    handles = []
    for (layer, projection), site in find_sites(model).items():

        def add(
            module: nn.Module,
            args: tuple[Tensor, ...],
            output: Tensor,
            at: tuple[int, str] = (layer, projection),
        ) -> Tensor:
            total = output
            for stack, weight, *first in stacks:
                if at[1] in stack.config.projections:
                    delta = weight * plain_delta(stack, *at, args[0])
                    delta[:, : sum(first)] = 0
                    total = total + delta
            return total

        handles.append(site.module.register_forward_hook(add))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def plain_delta(stack: StackTensors, layer: int, projection: str, x: Tensor) -> Tensor:
    """Sum over the rounds of `stack` of one projection's delta."""
    total = torch.zeros((), dtype=x.dtype)
    for n in range(stack.rounds):
        A, B, gate = (
            stack.tensors[f"rounds.{n}.layers.{layer}.{projection}.{part}"].to(x.dtype)
            for part in ("A", "B", "gate")
        )
        total = total + reference_delta(x, A, B, gate, top_k=stack.config.top_k, scaling=stack.config.scaling)
    return total


@torch.no_grad()
def plain_logits(model: Any, ids: Sequence[int], stacks: Sequence[PlainStack] = ()) -> Tensor:
    """[T, V] logits of one prompt: transformers' own forward of an untouched model, and the plain deltas."""
    with plainly_composed(model, stacks):
        logits: Tensor = model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits
    return logits[0]


def plain_greedy(
    model: Any,
    prompt: Sequence[int],
    count: int,
    stacks: Sequence[PlainStack] = (),
    ends: Sequence[int] = (END,),
) -> list[int]:
    """The next `count` tokens, one whole forward for each; stops after one of `ends`."""
    ids = list(prompt)
    while len(ids) < len(prompt) + count:
        ids.append(int(plain_logits(model, ids, stacks)[-1].argmax()))
        if ids[-1] in ends:
            break
    return ids[len(prompt) :]


# --- data ----------------------------------------------------------------------------------------


def write_records(path: Path, rows: Sequence[tuple[str, str]]) -> Path:
    """A JSONL file of (prompt, response) with ids."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps({"id": f"{path.stem}-{i}", "prompt": prompt, "response": response})
        for i, (prompt, response) in enumerate(rows)
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def sentencepiece_like() -> Any:
    """A tokenizer whose pieces are ▁word, single characters, and <0xNN> for what it does not know."""
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    pieces = ["<unk>", "<s>", *(f"<0x{i:02X}>" for i in range(256)), "▁", *"abcdefgh", "▁a", "ab", "▁ab"]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    merges = [("▁", "a"), ("a", "b"), ("▁a", "b")]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>")
