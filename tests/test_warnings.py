"""What warnings and errors say: torch-l1-snr's key words, by which people filter them; and when."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

import cases
import pytest
import torch
from cases import SPECTRAL, build, needs_upstream, signals, upstream
from torch import nn

import torch_l1snr_fast as package


def bad(module: ModuleType) -> None:
    e, t = signals(2, cases.LENGTH)
    e[0, 3] = torch.nan
    build("STFTL1SNRDBLoss", module)(e, t)


def of_length(length: int, kind: str = "STFTL1SNRDBLoss") -> Callable[[ModuleType], None]:
    return lambda module: build(kind, module, min_audio_length=15)(*signals(2, length)).item()


def injected(**options: Any) -> Callable[[ModuleType], None]:
    return lambda module: build(
        "MultiL1SNRDBLoss", module, time_loss_module=nn.L1Loss(), **options
    ).eval()


# What a filter or a test would match, by situation; 17 is n_fft//2 + 1 of the smallest resolution.
WORDS: dict[str, tuple[Callable[[ModuleType], None], list[str]]] = {
    "not finite": (bad, ["loss: ", "non-finite", "sanitized", "NaN to", "once per loss instance"]),
    "below min_audio_length": (
        of_length(14),
        ["input length 14 is below min_audio_length", "falling back", "time-domain", "different"],
    ),
    "no resolution fits": (
        of_length(16),
        ["input length 16 fits none of the", "need at least 17 samples", "falling back"],
    ),
    "a resolution dropped": (
        of_length(30),
        ["input length 30 is too short", "resolution(s)", "n_fft//2 + 1", "average", "comparable"],
    ),
    "of the combined loss": (of_length(16, "MultiL1SNRDBLoss"), ["at least 17 samples"]),
    "level matching lost": (
        injected(),
        ["time_loss_module", "adaptive level-matching regulariz", "dropped", "spectrogram branch"],
    ),
    "settings lost": (
        injected(use_time_regularization=False, time_loss_params={"weight": 2.0}),
        ["time_loss_module", "time_loss_params is ignored"],
    ),
    "pure L1": (
        injected(use_time_regularization=False, l1_weight=1.0),
        ["pure-L1 mode", "does not honour", "pure_l1_mode"],
    ),
}


@needs_upstream
@pytest.mark.parametrize(("give", "words"), WORDS.values(), ids=WORDS)
def test_warnings_have_upstreams_words(give: Callable[[ModuleType], None], words: list[str]):
    for module in (upstream, package):
        with cases.recorded() as caught:
            give(module)
        assert len(caught) == 1
        for word in words:
            assert re.search(re.escape(word), str(caught[0].message)), (module.__name__, word)


ERRORS: dict[str, tuple[Callable[[ModuleType], Any], list[str]]] = {
    "rank 1": (
        lambda m: m.L1SNRLoss("x")(torch.zeros(9), torch.zeros(9)),
        [
            "estimates must be batch-first with at least 2 dimensions",
            "(9,)",
            "add a batch dimension",
        ],
    ),
    "shapes": (
        lambda m: m.L1SNRLoss("x")(torch.zeros(2, 9), torch.zeros(2, 8)),
        ["estimates and actuals must have the same shape", "(2, 9)"],
    ),
    "empty": (
        lambda m: m.L1SNRLoss("x")(torch.zeros(2, 0), torch.zeros(2, 0)),
        ["estimates is empty"],
    ),
    "PCM": (
        lambda m: m.L1SNRLoss("x")(torch.zeros(2, 9).int(), torch.zeros(2, 9).int()),
        ["estimates must be a floating-point tensor", ".float() / 32768"],
    ),
    "read-only": (
        lambda m: setattr(m.L1SNRLoss("x"), "l1_weight", 0.5),
        ["l1_weight", "read-only", "loss with"],
    ),
    "too long a window": (
        lambda m: m.STFTL1SNRDBLoss("x", n_ffts=[8], hop_lengths=[4], win_lengths=[9]),
        ["win_length (9) must not exceed the FFT size (8)"],
    ),
    "lists of different length": (
        lambda m: m.STFTL1SNRDBLoss("x", n_ffts=[8], hop_lengths=[4, 4], win_lengths=[8]),
        ["n_ffts, hop_lengths and win_lengths must all have the same length, got 1, 2 and 1"],
    ),
}


@needs_upstream
@pytest.mark.parametrize(("fail", "words"), ERRORS.values(), ids=ERRORS)
def test_errors_have_upstreams_words(fail: Callable[[ModuleType], Any], words: list[str]):
    for module in (upstream, package):
        with pytest.raises((ValueError, AttributeError)) as error:
            fail(module)
        for word in words:
            assert word in str(error.value), (module.__name__, word)


@pytest.mark.parametrize("kind", SPECTRAL)
@pytest.mark.parametrize("length", [14, 16, 30, cases.LENGTH])
def test_as_errors_they_are_raised_at_every_call(kind: str, length: int):
    """Under -W error a warning that has been raised has not been given."""
    loss = build(kind, min_audio_length=15)
    e, t = signals(2, length)
    if length == cases.LENGTH:
        e[0, 3] = torch.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            with pytest.raises(RuntimeWarning):
                loss(e, t)


def test_they_name_a_loss_as_it_is_called_now():
    loss = build("STFTL1SNRDBLoss", min_audio_length=15)
    loss.name = "vocals"
    with pytest.warns(RuntimeWarning, match="^vocals: input length 14"):
        loss(*signals(2, 14))


@pytest.mark.parametrize("kind", SPECTRAL)
@pytest.mark.parametrize("length", [14, 16, 30])
def test_compiled_for_any_length(kind: str, length: int):
    """A length that is known as a symbol alone is no text."""
    torch._dynamo.reset()
    loss = build(kind, min_audio_length=15)
    compiled = torch.compile(loss, backend="eager", dynamic=True, fullgraph=True)
    pair = signals(2, length)
    with pytest.warns(RuntimeWarning, match="the input"):
        got = compiled(*pair)
    with pytest.warns(RuntimeWarning, match=f"input length {length}"):
        want = build(kind, min_audio_length=15)(*pair)
    cases.assert_close(got, want, 1e-12)
    torch._dynamo.reset()
