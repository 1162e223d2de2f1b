"""A GGUF file is read as it was written; a damaged one is refused by name, wherever it ends."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type

from brainstacks.errors import UnsupportedModel
from brainstacks.gguf_file import GgufFile
from tests.tiny_gguf import TOKENS, save_gguf


def test_metadata_and_tensors_are_what_the_gguf_package_reads(tmp_path: Path) -> None:
    path = save_gguf(tmp_path / "base.gguf", kinds=(Type.Q4_1, Type.F16))
    file, reader = GgufFile(path), gguf.GGUFReader(path)
    assert file.metadata == {
        key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")
    }
    assert file.metadata["tokenizer.ggml.tokens"] == list(TOKENS)
    assert list(file.tensors) == [tensor.name for tensor in reader.tensors]
    for tensor in reader.tensors:
        found = file.tensors[tensor.name]
        assert found.type == tensor.tensor_type
        assert found.shape == tuple(reversed(tensor.shape.tolist()))
        assert np.array_equal(found.data.reshape(-1), tensor.data.reshape(-1).view(np.uint8))


def test_a_file_that_ends_too_early_is_refused_wherever_it_ends(tmp_path: Path) -> None:
    whole = save_gguf(tmp_path / "base.gguf").read_bytes()
    cut = tmp_path / "cut.gguf"
    for length in [*range(0, 4000, 7), len(whole) - 1]:
        cut.write_bytes(whole[:length])
        with pytest.raises(
            UnsupportedModel, match=r"cut\.gguf cannot be read as a GGUF file .* fetch it again"
        ):
            GgufFile(cut)


@pytest.mark.parametrize(
    ("at", "bytes_", "message"),
    [
        (0, b"GGML", "begins with b'GGML'"),
        (4, (7).to_bytes(4, "little"), "version 7"),
        (16, (2**62).to_bytes(8, "little"), "cannot be read"),
        (24, (2**62).to_bytes(8, "little"), "cannot be read"),
    ],
)
def test_a_header_that_lies_is_refused(tmp_path: Path, at: int, bytes_: bytes, message: str) -> None:
    content = bytearray(save_gguf(tmp_path / "base.gguf").read_bytes())
    content[at : at + len(bytes_)] = bytes_
    (tmp_path / "base.gguf").write_bytes(content)
    with pytest.raises(UnsupportedModel, match=message):
        GgufFile(tmp_path / "base.gguf")
