"""The example trains, resumes where it was, and follows torch-l1-snr step by step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

for needed in ("matplotlib", "soundfile", "torchaudio", "torch_l1_snr", "tqdm"):
    pytest.importorskip(needed, reason="the examples extra is not installed", exc_type=ImportError)

EXAMPLES = Path(__file__).parent.parent / "examples"
SMALL = ["--batch", "1", "--seconds", "0.5", "--sample-rate", "8000"]


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))


def train(out: Path, *options: str) -> list[dict]:
    from train_separator import main

    assert main([*SMALL, "--held-out", "1", "--out", str(out), *options]) == 0
    return [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]


def test_trains_and_resumes_where_it_was(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", "--steps", "4")
    train(tmp_path / "parts", "--steps", "2")
    parts = train(tmp_path / "parts", "--steps", "4", "--resume")
    assert len(whole) == 4
    assert [row["loss"] for row in parts] == [row["loss"] for row in whole]
    assert "time/d1" in whole[0]
    for name in ("checkpoint.pt", "loss_curve.png", "spectrograms.png", "results.json"):
        assert (tmp_path / "whole" / name).stat().st_size > 0
    assert list((tmp_path / "whole" / "audio").glob("*.wav"))


def test_a_mistake_is_answered(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from train_separator import main

    assert main(["--out", str(tmp_path), "--steps", "0"]) == 2
    assert "--steps" in capsys.readouterr().err


@pytest.mark.parametrize(("nudge", "code"), [("0", 0), ("0.01", 1)])
def test_lockstep_with_upstream(tmp_path: Path, nudge: str, code: int) -> None:
    """A nudge of one percent is a difference that the tolerances must notice."""
    from lockstep import main

    assert main([*SMALL, "--steps", "3", "--out", str(tmp_path), "--nudge", nudge]) == code
