"""Who imports whom: `server -> brainstacks <- training`, and the order inside `brainstacks`."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

ORDER = {
    "errors": 0,
    "base_identity": 0,
    "cpu": 0,
    "config": 0,
    "weights": 1,
    "device": 0,
    "device_map": 1,
    "fresh_thread": 0,
    "durable": 0,
    "cache": 1,
    "base_files": 1,
    "gguf_file": 1,
    "kernels": 1,
    "gpu_kernels": 1,
    "layers": 2,
    "fingerprint": 2,
    "gguf_blocks": 2,
    "gguf_checkpoint": 2,
    "checkpoint": 2,
    "pretrained": 2,
    "chat_template": 2,
    "tokenizer": 2,
    "stacks": 3,
    "base_model": 3,
    "client": 4,
    "console": 4,
    "routing": 4,
    "engine": 5,
    "remote": 5,
    "heat_map": 5,
    "merging": 5,
    "exchange": 5,
    "composed_model": 6,
    "cli": 6,
}
"""A module imports only from its own level of `brainstacks` and those below; base and stacks stand side by
side and know nothing of each other."""

ROOMS = ("recipe", "data", "runs", "rounds", "reinforce", "curriculum", "router", "evaluation", "report")
"""Of training: each imports only from itself and from those before it, and `progress`, which all may use."""

ENGINE_ROOMS = ("sampling", "runner", "serving")
"""Of the engine: each imports only from itself and from those before it."""

INSTRUMENTS = "instruments"
BENCHMARK_ROOMS: dict[str, tuple[str, ...]] = {
    INSTRUMENTS: (),
    "serving": (INSTRUMENTS,),
    "peers": (INSTRUMENTS,),
    "experiments": (INSTRUMENTS,),
    "adapter_routers": (INSTRUMENTS, "experiments"),
    "reinforcement": (INSTRUMENTS,),
    "gpu_sections": (INSTRUMENTS, "serving", "peers"),
    "scaling": (INSTRUMENTS, "serving"),
    "http_share": (INSTRUMENTS, "serving"),
}
"""What the commands at the top of `benchmarks` share, and which others each room knows."""

TORCH_FREE = (
    "base_identity",
    "client",
    "config",
    "cpu",
    "console",
    "durable",
    "errors",
    "remote",
    "routing/policy",
    "stacks/artifact",
    "stacks/blob_cache",
    "stacks/blobs",
    "stacks/bucket",
    "stacks/bucket_errors",
    "stacks/bucket_url",
    "stacks/card",
    "stacks/document",
    "stacks/envelope",
    "stacks/hub_store",
    "stacks/ledger",
    "stacks/local_store",
    "stacks/location",
    "stacks/manifest",
    "stacks/module_names",
    "stacks/object_store",
    "stacks/peft_config",
    "stacks/registry",
    "stacks/release",
    "stacks/router_artifact",
    "stacks/safetensors_file",
    "stacks/store",
    "stacks/verify",
    "engine/facts",
    "engine/interface",
    "engine/request",
    "engine/routes",
    "engine/detokenizer",
)


def sources(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert found, f"no modules in {package}"
    return found


def imports(path: Path) -> Iterator[str]:
    """Absolute names of everything that a module imports, at its top, in a function, or for types only."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def top_level(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)}


def module_id(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", sources("brainstacks"), ids=module_id)
def test_the_library_knows_neither_its_server_nor_its_trainer_nor_their_libraries(path: Path) -> None:
    foreign = {
        "server", "training", "tests", "benchmarks", "fastapi", "starlette", "uvicorn", "pydantic",
        "pydantic_settings", "prometheus_client", "datasets", "trl", "yaml",
    }  # fmt: skip
    assert not top_level(path) & foreign


@pytest.mark.parametrize("path", sources("server"), ids=module_id)
def test_the_server_does_not_know_the_trainer(path: Path) -> None:
    assert not top_level(path) & {"training", "tests", "benchmarks"}


@pytest.mark.parametrize("path", sources("training"), ids=module_id)
def test_the_trainer_does_not_know_the_server(path: Path) -> None:
    assert not top_level(path) & {"server", "tests", "benchmarks", "fastapi"}


@pytest.mark.parametrize("path", sources("brainstacks"), ids=module_id)
def test_inside_the_library_imports_go_downwards(path: Path) -> None:
    parts = path.relative_to(ROOT / "brainstacks").with_suffix("").parts
    if parts == ("__init__",):
        return  # the public face names what is at the top, lazily
    level = ORDER[parts[0]]
    for name in imports(path):
        package, _, rest = name.partition(".")
        if package == "brainstacks":
            other = rest.split(".")[0]
            assert ORDER[other] <= level, f"{'.'.join(parts)} imports {name}"


@pytest.mark.parametrize("room", ROOMS)
def test_inside_the_trainer_imports_go_from_room_to_room_one_way(room: str) -> None:
    allowed = ("progress", *ROOMS[: ROOMS.index(room) + 1])
    for path in sources(f"training/{room}"):
        for name in imports(path):
            if name.startswith("training."):
                assert name.split(".")[1] in allowed, f"{path}: {name}"


@pytest.mark.parametrize("room", ENGINE_ROOMS)
def test_inside_the_engine_imports_go_from_room_to_room_one_way(room: str) -> None:
    later = ENGINE_ROOMS[ENGINE_ROOMS.index(room) + 1 :]
    above = {"engine", "engine_thread", "async_engine", "intake", "jobs"}
    for path in sources(f"brainstacks/engine/{room}"):
        for name in imports(path):
            if name.startswith("brainstacks.engine."):
                assert name.split(".")[2] not in {*later, *above}, f"{path}: {name}"


@pytest.mark.parametrize("room", BENCHMARK_ROOMS)
def test_a_room_of_the_benchmarks_knows_itself_and_few_others(room: str) -> None:
    for path in sources(f"benchmarks/{room}"):
        for name in imports(path):
            if name.startswith("benchmarks."):
                assert name.split(".")[1] in (room, *BENCHMARK_ROOMS[room]), f"{path}: {name}"


def test_at_the_top_of_the_benchmarks_are_commands_that_know_nothing_of_each_other() -> None:
    rooms = [path.parent for path in sources("benchmarks") if path.name == "__init__.py"]
    assert {path.name for path in rooms} == {"benchmarks", *BENCHMARK_ROOMS}
    for path in (ROOT / "benchmarks").glob("*.py"):
        names = [name for name in imports(path) if name.startswith("benchmarks.")]
        assert all(name.split(".")[1] in BENCHMARK_ROOMS for name in names), f"{path}: {names}"
        text = path.read_text(encoding="utf-8")
        assert path.name == "__init__.py" or text.endswith('if __name__ == "__main__":\n    app()\n'), path


def test_base_and_stacks_know_nothing_of_each_other() -> None:
    base = ROOT / "brainstacks" / "base_model.py"
    assert not any(name.startswith("brainstacks.stacks") for name in imports(base))
    for path in sources("brainstacks/stacks"):
        assert not any(name.startswith("brainstacks.base_model") for name in imports(path)), path


@pytest.mark.parametrize("package", ["brainstacks", "server", "training"])
def test_the_page_on_the_architecture_names_every_file(package: str) -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    missing = [path.name for path in sources(package) if path.name not in page]
    assert not [name for name in missing if name != "__init__.py"]


@pytest.mark.parametrize("module", TORCH_FREE)
def test_decisions_and_formats_import_no_torch(module: str) -> None:
    libraries = {"torch", "transformers", "bitsandbytes", "safetensors"}
    assert not top_level(ROOT / "brainstacks" / f"{module}.py") & libraries


def test_the_scheduler_holds_no_tensors() -> None:
    path = ROOT / "brainstacks" / "engine" / "scheduler.py"
    assert "torch" not in top_level(path)


def test_the_registrys_command_line_starts_without_torch() -> None:
    code = "import brainstacks.cli, brainstacks, sys; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=300)


@pytest.mark.parametrize("package", ["brainstacks", "server", "training"])
def test_no_module_can_run_code_from_a_file_it_reads(package: str) -> None:
    """`pickle` and its relatives are absent; the importer of published files reads weights only."""
    for path in sources(package):
        assert not top_level(path) & {"pickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"}, path
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                arguments = {k.arg: ast.unparse(k.value) for k in node.keywords}
                assert arguments.get("weights_only") == "True", path


@pytest.mark.parametrize("package", ["brainstacks", "server", "training", "tests", "benchmarks"])
def test_no_file_is_longer_than_300_lines(package: str) -> None:
    lengths = {
        module_id(path): len(path.read_text(encoding="utf-8").splitlines()) for path in sources(package)
    }
    assert not {path: length for path, length in lengths.items() if length > 300}


@pytest.mark.parametrize("package", ["brainstacks", "server", "training"])
def test_user_input_is_not_checked_with_assert(package: str) -> None:
    for path in sources(package):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        lines = [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert)]
        assert not lines, f"{path.relative_to(ROOT)}: assert in lines {lines}"
