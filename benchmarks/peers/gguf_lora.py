"""Random LoRA adapters as GGUF files, for llama.cpp."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf import GGUFWriter

from benchmarks.instruments.random_stacks import B_STD
from brainstacks.base_identity import BaseIdentity

ARCHITECTURE = "llama"
"""The one whose tensor names are given here."""

TENSORS = {
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
}
"""Projection -> its part of a tensor's name in GGUF."""


def write_random_lora(path: Path, base: BaseIdentity, *, rank: int = 64, seed: int = 0) -> None:
    """An adapter on all seven projections of every layer, float16, `alpha = rank`.

    A is uniform in +-1/sqrt(d_in), B normal with deviation `B_STD`, as of the random stacks.
    """
    random = np.random.default_rng(seed)
    writer = GGUFWriter(path, ARCHITECTURE)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(rank))
    for layer in range(base.layers):
        for projection, (d_in, d_out) in base.dims.items():
            name = f"blk.{layer}.{TENSORS[projection]}.weight"
            A = random.uniform(-(d_in**-0.5), d_in**-0.5, (rank, d_in))
            B = random.normal(0.0, B_STD, (d_out, rank))
            writer.add_tensor(f"{name}.lora_a", A.astype(np.float16))
            writer.add_tensor(f"{name}.lora_b", B.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_random_loras(directory: Path, base: BaseIdentity, count: int) -> list[Path]:
    """`count` different ones, in `directory`."""
    paths = [directory / f"lora-{number}.gguf" for number in range(count)]
    for seed, path in enumerate(paths):
        write_random_lora(path, base, seed=seed)
    return paths
