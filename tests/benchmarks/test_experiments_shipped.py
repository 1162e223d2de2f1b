"""The registry and the LoRA that it is compared with have equal parameters, and saw the same."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from benchmarks.experiments import shipped
from brainstacks.base_model import identify_base
from brainstacks.stacks.registry import Registry
from tests.tiny import publish_stack, random_stack, write_router


def test_the_shipped_registry_meets_a_lora_that_saw_the_same_domains(
    tiny_directory: Path, data: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        json.dumps(
            {
                "base": str(tiny_directory),
                "quantization": "none",
                "data": {"max_tokens": 96, "selection": 4},
                "stack": {"rank": 2, "experts": 3, "top_k": 2},
                "round": {"steps": 3, "batch_size": 2, "learning_rate": 5e-3, "warmup_steps": 1},
                "domains": [{"name": name, "licence": "CC0"} for name in ("chat", "math")],
            }
        )
    )
    identity, registry = identify_base(tiny_directory), Registry(tmp_path / "registry", create=True)
    for seed, domain in enumerate(("chat", "math")):
        publish_stack(registry, identity, domain, random_stack(identity.dims, seed, size=0.3), tmp_path)
    registry.publish_router(write_router(tmp_path / "router.safetensors", registry, identity))
    flags = [*("--data", str(data), "--recipe", str(recipe), "--registry", str(tmp_path / "registry"))]
    flags += [*("--run", str(tmp_path / "run"), "--output", str(tmp_path / "results"))]
    result = CliRunner().invoke(shipped.app, flags, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    (file,) = (tmp_path / "results").glob("*.json")
    found = json.loads(file.read_text())
    assert set(found["validation_nll"]) == {"base", "shipped, ungated", shipped.ROUTED, shipped.LORA}
    assert found["settings"]["steps"] == 3
    counts = found["trainable_parameters"].values()
    assert max(counts) <= 1.1 * min(counts)
    assert str(tmp_path) not in file.with_suffix(".md").read_text()
