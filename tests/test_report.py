"""``python -m torch_l1snr_fast``: says what runs and whether it is right, and exits accordingly."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import torch_l1snr_fast as package
from torch_l1snr_fast import __main__ as report
from torch_l1snr_fast.kernels import eager
from torch_l1snr_fast.kernels.eager import few


def test_runs_as_a_module():
    command = [sys.executable, "-m", "torch_l1snr_fast"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout + result.stderr
    assert package.__version__ in result.stdout
    assert torch.__version__ in result.stdout
    assert "backend" in result.stdout
    assert result.stdout.count(" ok") >= 5


def test_wrong_gradient_is_reported(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    """A self-check that cannot fail would be worse than none."""
    right = eager.write_gradient
    monkeypatch.setattr(
        eager, "write_gradient", lambda *x: right(*x).mul_(1.001)
    )  # written in place
    with package.use_backend("eager"):
        assert report.main() != 0
    assert "FAILED" in capsys.readouterr().out


def test_wrong_value_is_reported(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    right = few.finished

    def wrong(*x):
        loss, parts = right(*x)
        return loss + 1e-3, parts

    monkeypatch.setattr(few, "finished", wrong)  # of the few rows that are checked
    with package.use_backend("eager"):
        assert report.main() != 0
    assert "FAILED" in capsys.readouterr().out


def test_names_the_devices_and_backends(capsys: pytest.CaptureFixture):
    with package.use_backend("reference"):
        assert report.main() == 0
    assert "reference" in capsys.readouterr().out
