"""A base's files are found by its name; what is no base is refused with a way out."""

from __future__ import annotations

from pathlib import Path

import pytest

from brainstacks.base_files import base_name, locate
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


def test_names_are_short() -> None:
    assert base_name("packaged:smollm2-135m-instruct") == "smollm2-135m-instruct"
    assert base_name("organisation/model") == "model"
    assert base_name("/somewhere/model.gguf") == "model"
    assert base_name("/somewhere/model/") == "model"
