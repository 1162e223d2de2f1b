"""The same curriculum on random weights: another base of the same shape, and what decides."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.experiments import psn
from benchmarks.experiments.laboratory import Laboratory
from brainstacks.base_model import identify_base, load_base
from brainstacks.errors import ConfigError
from training.evaluation.intervals import Estimate


def test_random_weights_have_the_shape_and_tokenizer_of_the_base_and_are_made_once(
    tiny_directory: Path, tmp_path: Path
) -> None:
    made = psn.random_base(str(tiny_directory), tmp_path / "random")
    base, random = identify_base(tiny_directory), identify_base(made)
    assert random.fingerprint != base.fingerprint
    assert (random.layers, random.dims) == (base.layers, base.dims)
    same = psn.random_base(str(tiny_directory), tmp_path / "again")
    assert identify_base(same).fingerprint == random.fingerprint
    written = (made / "config.json").stat().st_mtime_ns
    assert psn.random_base(str(tiny_directory), made) == made
    assert (made / "config.json").stat().st_mtime_ns == written
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    tokenizers = [
        load_base(path, quantization="none", device="cpu", dtype=torch.float32).chat_tokenizer()
        for path in (tiny_directory, made)
    ]
    ids = [tokenizer.encode_chat([{"role": "user", "content": "hello"}]) for tokenizer in tokenizers]
    assert ids[0] == ids[1]


def test_a_base_in_its_files_own_bits_is_refused_before_anything_is_trained(lab: Laboratory) -> None:
    lab.materials.settings = replace(lab.materials.settings, quantization="native")
    with pytest.raises(ConfigError, match="give none, nf4 or int8"):
        psn.STUDY.trainings(lab.materials)


def test_both_bases_are_trained_alike_and_told_by_what_stacks_take_away(lab: Laboratory) -> None:
    lab.train_all(psn.STUDY.trainings(lab.materials))
    found = psn.STUDY.find(lab)
    assert "nan" not in found.tables.lower()
    losses = found.figures["validation_nll"]
    for kind in psn.KINDS:
        base, trained = (losses[f"{kind}: {what}"]["mean"]["value"] for what in ("base", "as trained"))
        gain = found.figures["relative_gains"][kind]["as trained"]["value"]
        assert gain == pytest.approx((base - trained) / base)
    short = found.figures["random_with_stacks_less_pretrained_without"]["value"]
    of_random = losses["random: as trained"]["mean"]["value"]
    assert short == pytest.approx(of_random - losses["pretrained: base"]["mean"]["value"])
    assert ("not shown" in found.verdict) == (not found.figures["confirmed"])


def test_the_papers_finding_is_confirmed_where_random_weights_stay_behind_for_sure() -> None:
    names = (*psn.GAINS, psn._SHARE)
    figures = {kind: dict.fromkeys(names, Estimate(0.1, (0.05, 0.15))) for kind in psn.KINDS}
    assert psn._verdict(figures, Estimate(2.0, (1.5, 2.5)), 4).endswith("are needed.")
    assert psn._verdict(figures, Estimate(0.2, (-0.1, 0.5)), 4).endswith("not shown to be needed.")
