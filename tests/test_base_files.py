"""A base's files are found by its name; what is no base is refused with a way out."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from brainstacks import base_files
from brainstacks.base_files import PackagedFile, base_name, default_quantization, locate
from brainstacks.errors import UnsupportedModel


def test_what_is_no_base_is_refused_with_a_way_out(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UnsupportedModel, match=r"'empty' has no config\.json"):
        locate(tmp_path / "empty")
    with pytest.raises(UnsupportedModel, match=r"no file 'gone\.gguf'"):
        locate(tmp_path / "gone.gguf")
    with pytest.raises(UnsupportedModel, match="no packaged base is named 'packaged:other'"):
        locate("packaged:other")


def test_a_hub_id_that_cannot_be_fetched_is_refused_with_what_else_there_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import huggingface_hub

    def offline(*args: object, **kwargs: object) -> str:
        raise ConnectionError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(UnsupportedModel, match=r"'nobody/nothing' is no local directory.*packaged:smollm2"):
        locate("nobody/nothing")


def test_a_packaged_base_is_held_in_its_own_bits_and_any_other_in_nf4() -> None:
    assert default_quantization("packaged:smollm2-135m-instruct") == "native"
    assert default_quantization("model.gguf") == "nf4"
    assert default_quantization(Path("directory")) == "nf4"


def test_names_are_short() -> None:
    assert base_name("packaged:smollm2-135m-instruct") == "smollm2-135m-instruct"
    assert base_name("organisation/model") == "model"
    assert base_name("/somewhere/model.gguf") == "model"
    assert base_name("/somewhere/model/") == "model"


@pytest.fixture
def in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A base named `packaged:parts`, in the two packages at these paths; an empty cache."""
    packages = tmp_path / "one_part", tmp_path / "other_part"
    for package, content in zip(packages, (b"first, ", b"second"), strict=True):
        package.mkdir()
        (package / "__init__.py").write_text("raise RuntimeError('imported')")
        (package / "part").write_bytes(content)
    file = PackagedFile(
        "whole.gguf",
        hashlib.sha256(b"first, second").hexdigest(),
        tuple((package.name, "part") for package in packages),
        "parts==1.0",
    )
    monkeypatch.setitem(base_files.PACKAGED, "packaged:parts", file)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return packages


def test_a_file_in_several_packages_is_joined_once_and_its_packages_not_imported(
    in_parts: tuple[Path, Path],
) -> None:
    found = locate("packaged:parts")
    assert found.path.read_bytes() == b"first, second"
    assert found.path.name == "whole.gguf"
    assert found.gguf_digest == hashlib.sha256(b"first, second").hexdigest()
    made = found.path.stat().st_ino
    assert locate("packaged:parts").path.stat().st_ino == made


def test_parts_that_are_not_the_file_are_refused_and_leave_nothing_in_the_cache(
    in_parts: tuple[Path, Path], tmp_path: Path
) -> None:
    (in_parts[1] / "part").write_bytes(b"changed")
    with pytest.raises(UnsupportedModel, match=r"whole\.gguf is not the file that packaged:parts names"):
        locate("packaged:parts")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.name == "whole.gguf"]


def test_a_part_that_is_not_installed_is_named_with_what_installs_it(in_parts: tuple[Path, Path]) -> None:
    (in_parts[1] / "part").unlink()
    with pytest.raises(UnsupportedModel, match=r"package other-part, .*`pip install parts==1\.0`"):
        locate("packaged:parts")
