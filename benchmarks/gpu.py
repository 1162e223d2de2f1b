"""All that only a GPU can tell, in one command: what is computed, then how fast.

    python -m benchmarks.gpu --minutes 8

Correctness comes first, then figures; results are written anew whenever something was found, so that a killed
run leaves what it had. See benchmarks/README.md.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks.gpu_sections import outline, report
from benchmarks.gpu_sections.correctness import family_requests, packaged_requests
from benchmarks.gpu_sections.environment import environment
from benchmarks.gpu_sections.figures import gemma_figures, llama_figures, packaged_figures
from benchmarks.gpu_sections.hot_load import hot_load
from benchmarks.gpu_sections.kernel_tests import kernel_tests
from benchmarks.gpu_sections.outline import Document, Group, Section
from benchmarks.gpu_sections.peers import peers
from benchmarks.gpu_sections.setting import Setting
from benchmarks.gpu_sections.sizes import sizes
from benchmarks.gpu_sections.stacks import prepare
from benchmarks.gpu_sections.training_step import training_step
from benchmarks.instruments import options
from benchmarks.instruments.results import RESULTS, machine, write_results
from benchmarks.instruments.timing import say

NAME = "gpu"

GROUPS = (
    Group(5, (Section("machine", "The machine", environment),)),
    Group(
        33,
        (
            Section("tests", "Tests that need a GPU, and every kernel", kernel_tests),
            Section("requests", "Requests of the packaged base, float32", packaged_requests),
            Section("families", "Requests of tiny bases of several families, float32", family_requests),
            Section("sizes", "Decoders of real sizes, two layers, bfloat16", sizes),
            Section("stacks", "Stacks for the figures, written meanwhile", prepare),
        ),
    ),
    Group(16, (Section("packaged", "Figures: the packaged base, NF4", packaged_figures),)),
    Group(22, (Section("llama", "Figures: Llama-3-8B, NF4, random weights", llama_figures),)),
    Group(8, (Section("hot-load", "A stack loaded under load", hot_load),)),
    Group(10, (Section("training", "A training step", training_step),)),
    Group(16, (Section("peers", "Peers", peers),)),
    Group(14, (Section("gemma", "Figures: Gemma-3-12B, NF4, random weights", gemma_figures),)),
)
"""In their order; those of a group run side by side."""

NAMES = tuple(section.name for group in GROUPS for section in group.sections)
REHEARSAL = "**A rehearsal on the CPU, with interpreted kernels: no figure here means anything.**"
NOTE = "Median (min..max) of the rounds; ratios are taken round by round. Large bases have random weights."


def main(
    sections: Annotated[str, typer.Option(help="Separated by commas, in any order.")] = ",".join(NAMES),
    minutes: Annotated[float, typer.Option(min=0.5, help="For all of them together.")] = 8,
    rehearse: Annotated[
        bool, typer.Option("--rehearse", help="On the CPU, at the smallest sizes, with interpreted kernels.")
    ] = False,
    seed: options.Seed = 0,
    output: options.Output = RESULTS,
) -> None:
    """What is computed on a GPU, and how fast: checks, decode and prefill, loads, training, peers.

    Exits with 1 where something failed; what was found by then is in the results all the same.

    A quick look without a GPU: python -m benchmarks.gpu --rehearse --sections machine,families --output DIR
    """
    chosen = options.some_of(sections, NAMES)
    if not rehearse and not torch.cuda.is_available():
        raise typer.BadParameter(
            "no CUDA device is available; this needs one of 16 GB or more and PyTorch's CUDA build "
            "(--rehearse runs the benchmark's own code on the CPU)"
        )
    if rehearse:
        os.environ["TRITON_INTERPRET"] = "1"  # for the sections' processes
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # its processes end with it
    facts = machine()
    groups = [
        Group(group.weight, kept)
        for group in GROUPS
        if (kept := tuple(section for section in group.sections if section.name in chosen))
    ]
    ordered = [section for group in groups for section in group.sections]

    def write(found: Mapping[str, Document], tell: bool = False) -> None:
        document = {
            "machine": facts,
            "settings": {"minutes": minutes, "rehearsal": rehearse, "seed": seed},
            "sections": found,
        }
        text = report.text(ordered, found, REHEARSAL if rehearse else NOTE)
        name = f"{NAME}-rehearsal" if rehearse else NAME
        write_results(name, document, text, output, report=say if tell else lambda line: None)

    with tempfile.TemporaryDirectory() as scratch:
        found = outline.run(groups, Setting(Path(scratch), rehearse, seed), minutes, write)
    write(found, tell=True)
    failed = [name for name, document in found.items() if not outline.passed(document)]
    if failed:
        say(f"FAILED: {', '.join(failed)}")
        raise typer.Exit(1)


app = options.application(main)

if __name__ == "__main__":
    app()
