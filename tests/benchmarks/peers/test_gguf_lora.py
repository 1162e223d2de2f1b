"""Adapters for llama.cpp have the tensors that it looks for, with the base's shapes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf import GGUFReader

from benchmarks.peers.gguf_lora import write_random_lora, write_random_loras
from brainstacks.base_model import identify_base


def test_an_adapter_has_two_factors_for_each_projection(tmp_path: Path, tiny_directory: Path) -> None:
    base = identify_base(tiny_directory)
    write_random_lora(tmp_path / "lora.gguf", base, rank=4)
    reader = GGUFReader(tmp_path / "lora.gguf")
    told = {
        name: reader.fields[name].contents()
        for name in ("general.architecture", "general.type", "adapter.type", "adapter.lora.alpha")
    }
    assert list(told.values()) == ["llama", "adapter", "lora", 4.0]
    shapes = {tensor.name: tensor.data.shape for tensor in reader.tensors}
    assert len(shapes) == 2 * 7 * base.layers
    d_in, d_out = base.dims["down_proj"]
    assert shapes["blk.1.ffn_down.weight.lora_a"] == (4, d_in)
    assert shapes["blk.1.ffn_down.weight.lora_b"] == (d_out, 4)
    assert all(tensor.data.dtype == np.float16 and tensor.data.any() for tensor in reader.tensors)


def test_several_adapters_differ_and_are_the_same_every_time(tmp_path: Path, tiny_directory: Path) -> None:
    base = identify_base(tiny_directory)
    written = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        written.append([path.read_bytes() for path in write_random_loras(tmp_path / name, base, 2)])
    assert written[0] == written[1]
    assert written[0][0] != written[0][1]
