"""What the Triton kernels of the cuda backend take of a GPU, compiled for it where there is none.

    python -m benchmarks.kernel_resources

Every kernel, as it is launched for decoders of some sizes, is compiled for GPUs of compute capability 8.0,
9.0 and 10.0. NVIDIA's assembler, which comes with Triton, says how many registers a thread takes and how many
bytes it has to keep in memory for want of them (spills); Triton says how much shared memory a block takes.
How fast they are, no compiler says.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import triton
import typer
from triton.backends.compiler import GPUTarget

from benchmarks.instruments import options
from benchmarks.instruments.decoders import NAMES, decoder_config, projection_sizes
from benchmarks.instruments.results import RESULTS, machine, markdown_table, write_results
from benchmarks.instruments.timing import say
from brainstacks.engine.block_manager import BLOCK_TOKENS
from brainstacks.gpu_kernels import attention, deltas, norm
from brainstacks.gpu_kernels.configuration import Configuration
from brainstacks.gpu_kernels.launch import INTERPRETED
from brainstacks.layers.projections import INPUT_GROUPS

NAME = "kernel_resources"
CAPABILITIES = (80, 90, 100)
MOST_SHARED = 99 * 1024
"""Bytes of shared memory that a block can have on every GPU since 8.6."""


@dataclass(frozen=True)
class Resources:
    """Attributes:
    registers: of a thread.
    spilled: bytes of a thread that are written to memory for want of registers.
    shared: bytes of a block.
    """

    decoder: str
    kernel: str
    capability: int
    registers: int
    spilled: int
    shared: int


def configurations(decoder: str) -> Iterator[Configuration]:
    """Of all launches of a decoder in bfloat16."""
    config = decoder_config(decoder)
    sizes = projection_sizes(config)
    for names in INPUT_GROUPS:
        yield from deltas.configurations("bf16", sizes[names[0]][0], [sizes[name][1] for name in names])
    heads, kv_heads, dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    window = getattr(config, "sliding_window", None)
    yield norm.configuration(torch.bfloat16, config.hidden_size)
    yield from attention.configurations(torch.bfloat16, heads, kv_heads, dim, BLOCK_TOKENS, window)


def compiled(decoder: str, configuration: Configuration, capability: int) -> Resources:
    """What one kernel takes on one kind of GPU."""
    target = GPUTarget("cuda", capability, 32)
    made: Any = triton.compile(configuration.source(), target, configuration.options)
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    assembler = tools / ("ptxas-blackwell" if capability >= 100 else "ptxas")
    architecture = f"sm_{capability}{'a' if capability >= 90 else ''}"
    with tempfile.NamedTemporaryFile(suffix=".ptx") as file:
        file.write(made.asm["ptx"].encode())
        file.flush()
        said = subprocess.run(
            [assembler, "-v", "--gpu-name", architecture, "-o", "/dev/null", file.name],
            check=True, capture_output=True, text=True,
        ).stderr  # fmt: skip

    def figure(pattern: str) -> int:
        return int(re.findall(pattern, said)[0])

    return Resources(
        decoder, configuration.name, capability,
        figure(r"Used (\d+) registers"), figure(r"(\d+) bytes spill stores"), made.metadata.shared,
    )  # fmt: skip


def main(
    decoders: str = typer.Option(",".join(NAMES), help="Sizes, separated by commas."),
    output: options.Output = RESULTS,
) -> None:
    """Registers, spills and shared memory of every Triton kernel."""
    if INTERPRETED:
        raise typer.BadParameter("TRITON_INTERPRET is set: nothing would be compiled; unset it")
    unknown = set(decoders.split(",")) - set(NAMES)
    if unknown:
        raise typer.BadParameter(f"{', '.join(unknown)}; sizes are known of {', '.join(NAMES)}")
    found = []
    for decoder in decoders.split(","):
        say(f"compiling for {decoder}")
        for configuration in configurations(decoder):
            found += [compiled(decoder, configuration, capability) for capability in CAPABILITIES]
    rows = [
        (one.decoder, one.kernel, f"sm_{one.capability}", one.registers, one.spilled, one.shared)
        for one in found
    ]
    header = ("decoder", "kernel", "GPU", "registers", "bytes spilled", "shared memory")
    document = {"machine": machine(), "kernels": [asdict(one) for one in found]}
    write_results(NAME, document, markdown_table(header, rows), output)


app = options.application(main)

if __name__ == "__main__":
    app()
