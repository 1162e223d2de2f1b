"""The machine: what computes, with which versions, and how much memory is free."""

from __future__ import annotations

import shutil
import subprocess
from typing import Any

import torch

from benchmarks.gpu_sections.findings import Findings
from benchmarks.gpu_sections.setting import Setting
from benchmarks.instruments.results import machine
from benchmarks.instruments.roofline import read_bandwidth
from brainstacks.device import free_bytes, resolve_device


def environment(setting: Setting, found: Findings) -> None:
    device = resolve_device(setting.device)
    with found.attempt("versions and memory"):
        facts = machine()
        values: dict[str, Any] = {
            "processor": facts["gpu"] or facts["cpu"],
            "cores": facts["cores"],
            **facts["versions"],
            "CUDA of PyTorch": torch.version.cuda,
            "free memory, GB": round(free_bytes(device) / 1e9, 1),
        }
        if device.type == "cuda":
            properties = torch.cuda.get_device_properties(device)
            values["multiprocessors"] = properties.multi_processor_count
            values["bfloat16"] = torch.cuda.is_bf16_supported()
        found.figure("machine", values)
        found.table("Machine", ["", ""], [[name, value] for name, value in values.items()])
    if shutil.which("nvidia-smi"):
        with found.attempt("driver, clocks and power") as told:
            asked = "driver_version,clocks.sm,clocks.mem,power.limit,persistence_mode"
            said = subprocess.run(
                ["nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader"],
                capture_output=True, text=True, check=True, timeout=30,
            )  # fmt: skip
            found.figure("nvidia-smi", dict(zip(asked.split(","), said.stdout.split(", "), strict=False)))
            told.append(said.stdout.strip())
    with found.attempt("memory bandwidth") as told:
        bandwidth = read_bandwidth(device, *(() if device.type == "cpu" else (1 << 30,)))
        found.figure("read_bandwidth", bandwidth)
        told.append(f"a sum reads {bandwidth / 1e9:.0f} GB/s")
