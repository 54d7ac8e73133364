"""Sizes that only a card can judge: what is chosen, what is refused, and the command itself."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest
import torch

from torch_l1snr_fast import backends

if backends.triton_problem() is not None:
    pytest.skip("triton is not installed", allow_module_level=True)

from torch_l1snr_fast.kernels.triton import common

sys.path.append(str(Path(__file__).parent.parent))
from benchmarks import tune

USUAL = common.Config()


def outcome(gain: float, **change: object) -> tune.Outcome:
    return tune.Outcome(tune.Variant(tune.WAVEFORM, change, ""), 100.0, 100.0 * (1 - gain), None)


def test_the_best_of_each_size_that_gains_more_than_the_noise():
    found = [
        outcome(0.02, lanes=256),
        outcome(0.04, lanes=512),
        outcome(0.03, lanes=64),
        outcome(0.009, programs=4096),
        outcome(-0.1, prefetch=False),
    ]
    assert tune.best(found, USUAL) == USUAL._replace(lanes=512)


def test_a_variant_with_other_results_is_refused():
    variant = tune.Variant(tune.WAVEFORM, {"lanes": 256}, "")

    def step() -> tuple[torch.Tensor, torch.Tensor]:
        return torch.ones(1), torch.full((3,), common.config().lanes / 128)

    with pytest.raises(ArithmeticError, match="lanes=256 is"):
        tune.check(variant, USUAL, step)


def test_command_without_a_card(tmp_path: Path, monkeypatch, capsys):
    waveform = [variant for variant in tune.VARIANTS if variant.case is tune.WAVEFORM]
    monkeypatch.setattr(tune, "VARIANTS", waveform)
    monkeypatch.setattr(sys, "argv", ["tune", "--out", str(tmp_path)])
    assert tune.main() == 0
    rows = list(csv.DictReader((tmp_path / "tune.csv").read_text().splitlines()))
    assert [row["change"] for row in rows] == [variant.title() for variant in waveform]
    assert {row["unit"] for row in rows} == {"instructions"}
    assert float(rows[0]["changed"]) != float(rows[0]["usual"])  # another number of lanes
    assert "best:  Config(" in capsys.readouterr().out


def test_nothing_begins_when_the_time_is_over(capsys):
    cpu = torch.device("cpu")
    measure = tune.by_instructions
    assert not list(tune.outcomes(tune.VARIANTS, USUAL, (1, 1, 1), cpu, measure, lambda: -1.0))
    assert "no time left" in capsys.readouterr().out
