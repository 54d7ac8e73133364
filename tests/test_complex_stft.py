"""MultiResolutionComplexSTFTLoss: the formula in PyTorch decides, and lucidrains' BS-RoFormer."""

from __future__ import annotations

import math
from typing import Any

import cases
import pytest
import torch
from cases import incoming, signals, value_and_grad
from torch import Tensor, nn

import torch_l1snr_fast as package
from torch_l1snr_fast import MultiResolutionComplexSTFTLoss, functional
from torch_l1snr_fast import complex_stft as module
from torch_l1snr_fast.kernels.eager import complex_stft as eager
from torch_l1snr_fast.kernels.eager import stft

LENGTH = cases.LENGTH
# Longer than n_fft, as long, shorter; hops of a prime, as in BS-RoFormer.
SMALL: dict[str, Any] = {"win_lengths": [64, 32, 20, 8], "n_fft": 32, "hop_lengths": 7}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"weight": 0.3, "waveform_weight": 2.5},
    {"waveform_weight": 0.0},
    {"weight": 0.0},
    {"hop_lengths": [16, 9, 20, 30]},  # the last two leave samples out
    {"win_lengths": (37, 13, 1), "n_fft": 15},  # odd
    {"win_lengths": [2, 1], "n_fft": 1, "hop_lengths": 1},
    {"win_lengths": [500], "hop_lengths": 1000, "n_fft": 600},  # one frame
]
BACKENDS = ["eager", "reference"]


def build(**options: Any) -> MultiResolutionComplexSTFTLoss:
    return MultiResolutionComplexSTFTLoss("loss", **(SMALL | options))


def formula(
    e: Tensor,
    t: Tensor,
    weight: float = 1.0,
    waveform_weight: float = 1.0,
    win_lengths: Any = (),
    n_fft: int = 0,
    hop_lengths: Any = (),
) -> Tensor:
    """The loss as BS-RoFormer computes it."""
    loss = waveform_weight * nn.functional.l1_loss(e, t)
    hops = [hop_lengths] * len(win_lengths) if isinstance(hop_lengths, int) else hop_lengths
    for win, hop in zip(win_lengths, hops, strict=True):
        window = torch.hann_window(win, dtype=e.dtype)
        spectra = [
            torch.stft(
                x.reshape(-1, x.shape[-1]), max(win, n_fft), hop, win, window, return_complex=True
            )
            for x in (e, t)
        ]
        loss = loss + weight * nn.functional.l1_loss(*spectra)
    return loss


@pytest.fixture(params=BACKENDS, autouse=True)
def backend(request: pytest.FixtureRequest) -> Any:
    with package.use_backend(request.param):
        yield request.param


# The definition


@pytest.mark.parametrize("shape", [(1, LENGTH), (3, 2, LENGTH), (2, 2, 2, LENGTH)], ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_formula(options: dict[str, Any], shape: tuple[int, ...]):
    e, t = signals(*shape)
    want = value_and_grad(lambda e, t: formula(e, t, **(SMALL | options)), e, t)
    got = value_and_grad(build(**options), e, t)
    cases.assert_close(got[0], want[0], 1e-13 * float(want[0]))
    cases.assert_gradient(got[1], want[1], 1e-12)


def test_defaults_are_those_of_bs_roformer():
    e, t = signals(1, 2, 3000)
    settings = {"win_lengths": [4096, 2048, 1024, 512, 256], "n_fft": 2048, "hop_lengths": 147}
    loss = MultiResolutionComplexSTFTLoss("loss")
    want = value_and_grad(lambda e, t: formula(e, t, **settings), e, t)
    got = value_and_grad(loss, e, t)
    cases.assert_close(got[0], want[0], 1e-13 * float(want[0]))
    cases.assert_gradient(got[1], want[1], 1e-12)
    assert {name: getattr(loss, name) for name in settings} == settings
    assert loss.weight == loss.waveform_weight == loss.grad_scale == 1.0


def test_float32():
    """A bin of an n-point FFT is off by some 2^-24 (log2 n + 2) of its frame's rms; sums of less.

    A direction is as wrong as its bin by its modulus, and of noise's bins few are far below the
    rms: the mean square of 1 / (1 + |X|^2) costs a small factor, here 4.
    """
    e, t = signals(2, 2, 5000, dtype=torch.float32)
    settings = {"win_lengths": [1024, 256], "n_fft": 512, "hop_lengths": 147}
    want = value_and_grad(build(**settings), e.double(), t.double())
    got = value_and_grad(build(**settings), e, t)
    unit = 2.0**-24
    cases.assert_close(got[0], want[0], unit * (10 + 2 + math.log2(1e6)) * float(want[0]))
    cases.assert_gradient(got[1], want[1].float(), 4 * unit * (10 + 2))


def test_impulse():
    """All bins of an impulse have one modulus, the window's value at its place in the frame."""
    e, t = torch.zeros(2, 1, 1, 101, dtype=torch.float64)
    e[..., 50] = 0.5
    loss = build(win_lengths=[16], n_fft=32, hop_lengths=5, waveform_weight=3.0)
    window = torch.hann_window(16, dtype=torch.float64)
    starts = range(-8, 101, 5)  # of the windows
    hit = sum(float(window[50 - s]) for s in starts if 0 <= 50 - s < 16)
    wanted = 3.0 * 0.5 / 101 + 0.5 * hit / len([s for s in range(0, 102, 5)])
    cases.assert_close(loss(e, t), wanted, 1e-14)


def test_gradient_where_nothing_differs_is_zero():
    """In exact silence of the difference, and of a frame beside one that is not silent."""
    e, t = signals(2, 300, dtype=torch.float32)
    value, gradient = value_and_grad(build(), t.clone(), t)
    assert value == 0.0
    assert torch.equal(gradient, torch.zeros_like(gradient))
    e = torch.cat([e, t[:, :200]], dim=1)  # reaches as far as the longest window
    t = torch.cat([t, t[:, :200]], dim=1)
    _, gradient = value_and_grad(build(), e, t)
    assert gradient[:, :300].abs().min() > 0
    assert torch.equal(gradient[:, 300 + 64 :], torch.zeros_like(gradient[:, 300 + 64 :]))


def test_small_and_large_differences():
    """The gradient does not depend on the difference's size, but where squares underflow."""
    _, t = signals(2, LENGTH, dtype=torch.float32)
    zero = torch.zeros_like(t)
    _, want = value_and_grad(build(), t, zero)
    for power in (-40, 50):  # of two, which changes no rounding
        _, got = value_and_grad(build(), 2.0**power * t, zero)
        cases.assert_gradient(got, want, 1e-6)


def test_unknown_samples_show():
    e, t = signals(2, LENGTH)
    e[0, 100] = torch.nan
    loss = build(reduction="none")
    value, gradient = value_and_grad(loss, e, t)
    assert value.isnan().tolist() == [True, False]
    assert gradient[0].isnan().any()
    assert gradient[1].isfinite().all()


# BS-RoFormer's own


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:A window was not provided")  # by the model's constructor
def test_loss_inside_bs_roformer():
    """The model's own loss, its parts and its gradient, beside ours of the same output."""
    roformer = pytest.importorskip("bs_roformer", reason="BS-RoFormer is not installed")
    options: dict[str, Any] = {
        "dim": 8, "depth": 1, "time_transformer_depth": 1, "freq_transformer_depth": 1,
        "dim_head": 4, "heads": 1, "num_residual_streams": 1, "flash_attn": False,
        "mask_estimator_depth": 1, "stereo": True,
    }  # fmt: skip
    hops = {
        roformer.BSRoformer: 147,
        roformer.MelBandRoformer: [max(147, w // 4) for w in (4096, 2048, 1024, 512, 256)],
    }
    for kind, hop_lengths in hops.items():
        torch.manual_seed(0)
        extra = {"num_bands": 8} if kind is roformer.MelBandRoformer else {}
        model = kind(**options, **extra).eval()  # no dropout between its loss and ours
        mixture, target = 0.1 * torch.randn(2, 1, 2, 8192)
        want, (l1, spectral) = model(mixture, target=target, return_loss_breakdown=True)
        output = model(mixture)
        loss = MultiResolutionComplexSTFTLoss("loss", hop_lengths=hop_lengths)
        value, parts = loss(output, target[..., : output.shape[-1]], return_components=True)
        torch.testing.assert_close(value, want, rtol=1e-5, atol=0)
        torch.testing.assert_close(parts.pop("time/l1"), l1.detach(), rtol=1e-5, atol=0)
        torch.testing.assert_close(sum(parts.values()), spectral.detach(), rtol=1e-5, atol=0)
        last = list(model.mask_estimators.parameters())
        wanted, got = (torch.autograd.grad(x, last) for x in (want, value))
        for a, b in zip(got, wanted, strict=True):
            cases.assert_gradient(a, b, 1e-3)


# Options


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_reduction_and_components(reduction: str):
    e, t = signals(3, 2, LENGTH)
    rows = torch.stack([formula(e[i : i + 1], t[i : i + 1], **SMALL) for i in range(3)])
    loss = build(reduction=reduction)
    value, parts = loss(e.requires_grad_(), t, return_components=True)
    want = rows if reduction == "none" else getattr(rows, reduction)()
    cases.assert_close(value, want, 1e-13)
    assert list(parts) == ["time/l1", *(f"stft_{max(w, 32)}_7_{w}/l1" for w in (64, 32, 20, 8))]
    total = sum(parts.values())
    cases.assert_close(total, rows if reduction == "none" else rows.mean(), 1e-13)
    assert not any(part.requires_grad for part in parts.values())
    (got,) = torch.autograd.grad(value, e, incoming(value))
    reduced = (lambda x: x) if reduction == "none" else getattr(Tensor, reduction)
    _, want_grad = value_and_grad(
        lambda e, t: reduced(
            torch.stack([formula(e[i : i + 1], t[i : i + 1], **SMALL) for i in range(3)])
        ),
        e,
        t,
    )
    cases.assert_gradient(got, want_grad, 1e-12)


def test_grad_scale():
    e, t = signals(2, LENGTH)
    plain, scaled = (value_and_grad(build(grad_scale=s), e, t) for s in (1.0, 0.3))
    assert torch.equal(plain[0], scaled[0])
    cases.assert_gradient(scaled[1], 0.3 * plain[1], 1e-14)


@pytest.mark.parametrize("stems", [1, -1, [0, 2], [0, 1, 3]], ids=str)
def test_stems(stems: Any):
    e, t = signals(2, 4, 2, LENGTH)
    chosen = [stems % 4] if isinstance(stems, int) else stems
    value, gradient = value_and_grad(build(stem_dimension=stems), e, t)
    want, part = value_and_grad(build(), e[:, chosen], t[:, chosen])
    cases.assert_close(value, want, 1e-14)
    assert torch.equal(gradient[:, chosen], part)
    rest = [i for i in range(4) if i not in chosen]
    assert not gradient[:, rest].any()


def test_function_is_the_module():
    e, t = signals(2, 3, LENGTH)
    options = {"weight": 0.3, "reduction": "none", "grad_scale": 2.0, "stem_dimension": 1}
    got = value_and_grad(
        lambda e, t: functional.complex_stft_l1_loss(e, t, **(SMALL | options)), e, t
    )
    want = value_and_grad(build(**options), e, t)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


# Dtypes and layouts


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("target", [torch.float32, None], ids=str)
def test_dtypes(dtype: torch.dtype, target: torch.dtype | None):
    """Read as they are, computed in float32 or float64, the gradient rounded once."""
    e, t = signals(2, LENGTH, dtype=dtype)
    t = t.to(target or dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    value, gradient = value_and_grad(build(), e, t)
    assert value.dtype == wide
    assert gradient.dtype == dtype
    want, exact = value_and_grad(build(), e.to(wide), t.to(wide))
    assert torch.equal(value, want)
    assert torch.equal(gradient, exact.to(dtype))


def test_autocast_changes_nothing():
    e, t = signals(2, LENGTH, dtype=torch.float32)
    want = value_and_grad(build(), e, t)
    with torch.autocast("cpu", torch.bfloat16):
        got = value_and_grad(build(), e, t)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_layouts():
    e, t = signals(4, 3, LENGTH)
    want = value_and_grad(build(), e, t)
    for view in (
        lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
        lambda x: x.mT.contiguous().mT,
        lambda x: torch.stack([x, x], -1)[..., 0],
        lambda x: torch.nn.functional.pad(x, (3, 2))[..., 3:-2],
    ):
        value = build()(view(e).detach().requires_grad_(), view(t))
        cases.assert_close(value, want[0], 1e-14)
        x = e.clone().requires_grad_()
        value = build()(view(x), view(t))
        (gradient,) = torch.autograd.grad(value, x, incoming(value))
        cases.assert_gradient(gradient, want[1], 1e-13)
    expanded = build()(e, t[:1].expand(4, 3, LENGTH))
    cases.assert_close(expanded, build()(e, t[:1].repeat(4, 1, 1)), 1e-14)


# Checks


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": -1.0}, "weight must be non-negative.*-1.0"),
        ({"waveform_weight": math.nan}, "waveform_weight must be non-negative.*nan"),
        ({"win_lengths": 64}, "win_lengths must be a list.*64"),
        ({"win_lengths": []}, "win_lengths is empty"),
        ({"win_lengths": [64.0]}, "win_lengths must be an int, got 64.0"),
        ({"win_lengths": [0]}, "win_lengths must be positive, got 0"),
        ({"n_fft": 0}, "n_fft must be a positive int, got 0"),
        ({"n_fft": True}, "n_fft must be a positive int, got True"),
        ({"n_fft": [32]}, r"n_fft must be a positive int, got \[32\]"),
        ({"hop_lengths": 0}, "hop_lengths must be positive, got 0"),
        ({"hop_lengths": 7.0}, "hop_lengths must be a list or tuple of ints.*7.0"),
        ({"hop_lengths": [7, 7]}, "hop_lengths must be one int, or as many as win_lengths.*2.*4"),
        ({"grad_scale": 0.0}, "grad_scale must be positive.*0.0"),
        ({"reduction": "batchmean"}, "reduction must be one of.*batchmean"),
        ({"stem_dimension": "vocals"}, "stem_dimension must be.*vocals"),
    ],
    ids=str,
)
def test_bad_settings(options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        build(**options)
    with pytest.raises(ValueError, match=message):
        functional.complex_stft_l1_loss(*signals(2, 4, LENGTH), **(SMALL | options))


def test_bad_input():
    e, t = signals(2, LENGTH)
    with pytest.raises(ValueError, match="same shape"):
        build()(e, t[:, 1:])
    with pytest.raises(ValueError, match=r"32 samples.*n_fft=64.*at least 33.*win_lengths"):
        build()(e[:, :32], t[:, :32])
    build()(e[:, :33], t[:, :33])
    with pytest.raises(TypeError, match="actuals"):
        build()(e, None)


def test_settings_are_copied_and_can_be_scheduled():
    wins, hops = [64, 32], [7, 9]
    loss = build(win_lengths=wins, hop_lengths=hops)
    e, t = signals(2, LENGTH)
    want = loss(e, t)
    wins[0], hops[0] = 16, 1
    assert torch.equal(loss(e, t), want)
    loss.weight = 0.0
    cases.assert_close(loss(e, t), nn.functional.l1_loss(e, t), 1e-15)
    assert not loss.state_dict()


# Autograd

TINY: dict[str, Any] = {"win_lengths": [8, 5], "n_fft": 6, "hop_lengths": 3}


def leaves(target: bool = False) -> tuple[Tensor, Tensor]:
    e, t = signals(2, 2, 13)
    return e.requires_grad_(), t.requires_grad_(target)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_gradcheck(reduction: str):
    loss = build(**TINY, reduction=reduction)
    e, t = leaves()
    assert torch.autograd.gradcheck(lambda e: loss(e, t), e)
    e, t = leaves(target=True)
    assert torch.autograd.gradcheck(loss, (e, t), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda e: loss(e, t.detach()), e)


def test_torch_func():
    loss = build(**TINY)
    e, t = (x.detach() for x in leaves())
    (want,) = torch.autograd.grad(loss(x := e.clone().requires_grad_(), t), x)
    cases.assert_gradient(torch.func.grad(loss)(e, t), want, 1e-12)
    each = torch.func.vmap(lambda e, t: loss(e[None], t[None]))(e, t)
    cases.assert_close(each, build(**TINY, reduction="none")(e, t), 1e-13)


def test_jacobian_in_one_batched_backward():
    e, t = leaves()
    value = build(**TINY, reduction="none")(e, t)
    directions = torch.eye(2, dtype=value.dtype)
    (got,) = torch.autograd.grad(value, e, directions, is_grads_batched=True, retain_graph=True)
    want = torch.stack([torch.autograd.grad(value, e, d, retain_graph=True)[0] for d in directions])
    cases.assert_gradient(got, want, 1e-14)


def test_backward_twice_gives_the_same_bits():
    e, t = signals(2, LENGTH, dtype=torch.float32)
    value = build()(e.requires_grad_(), t)
    first, second = (torch.autograd.grad(value, e, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    again = build()(e, t)
    assert torch.equal(again, value)
    assert torch.equal(torch.autograd.grad(again, e)[0], first)


def test_evaluation_computes_no_gradient(monkeypatch: pytest.MonkeyPatch, backend: str):
    if backend == "reference":
        pytest.skip("autograd decides for the reference")
    asked = []
    compute = eager.complex_stft

    def spy(plan: Any, estimates: Tensor, actuals: Tensor, save: bool) -> Any:
        asked.append(save)
        return compute(plan, estimates, actuals, save)

    monkeypatch.setattr(eager, "complex_stft", spy)
    e, t = signals(2, LENGTH, dtype=torch.float32)
    want = build()(e.requires_grad_(), t)
    with torch.no_grad():
        assert torch.equal(build()(e, t), want)
    assert torch.equal(build()(e.detach(), t), want)
    assert asked == [True, False, False]
    want.backward()
    assert len(asked) == 3, "the backward computes nothing anew"


def test_one_gradient_is_saved(backend: str):
    """4N bytes beside the inputs, of whichever dtype, and the means of 5 terms of 2 rows."""
    if backend == "reference":
        pytest.skip("autograd decides for the reference")
    for dtype in (torch.float32, torch.bfloat16):
        e, t = signals(2, 2, 5000, dtype=dtype)
        inputs = {x.untyped_storage().data_ptr() for x in (e, t)}
        found: dict[int, int] = {}

        def pack(x: Tensor, inputs: Any = inputs, found: Any = found) -> Tensor:
            storage = x.untyped_storage()
            if storage.data_ptr() not in inputs:
                found[storage.data_ptr()] = storage.nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            build()(e.requires_grad_(), t)
        assert sum(found.values()) <= 4 * (e.numel() + 5 * 2)


def test_memory_may_be_written_once_the_loss_is_known(backend: str):
    if backend == "reference":
        pytest.skip("autograd decides for the reference")
    e, t = signals(2, LENGTH)
    _, want = value_and_grad(build(), e, t)
    for second in (False, True):
        x, y = e.clone(), t.clone()
        value = build()(x.requires_grad_(), y)
        x.data.normal_()
        y.normal_()
        if second:
            with pytest.raises(RuntimeError, match=r"second derivative.*clone"):
                torch.autograd.grad(value, x, create_graph=True)
        else:
            assert torch.equal(torch.autograd.grad(value, x, incoming(value))[0], want)


def test_targets_made_in_inference_mode():
    e, t = signals(2, LENGTH)
    want = value_and_grad(build(), e, t)
    with torch.inference_mode():
        made = t.clone()
    got = value_and_grad(build(), e, made)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


# Blocks


@pytest.mark.parametrize("block", [1, 500, 5000])
def test_any_size_of_block(block: int, monkeypatch: pytest.MonkeyPatch):
    """One frame at a time; blocks that leave a shorter one; several signals in one."""
    e, t = signals(3, 2, LENGTH)
    want = value_and_grad(build(), e, t)
    monkeypatch.setattr(stft, "BLOCK", block)
    got = value_and_grad(build(), e, t)
    cases.assert_close(got[0], want[0], 1e-14)
    cases.assert_gradient(got[1], want[1], 1e-13)


# torch.compile


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_one_graph(dtype: torch.dtype):
    torch._dynamo.reset()
    loss = build(grad_scale=0.5)
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    for seed in range(2):
        e, t = signals(2, 2, LENGTH, dtype=dtype, seed=seed)
        got, want = value_and_grad(compiled, e, t), value_and_grad(loss, e, t)
        cases.assert_close(got[0], want[0], 1e-6 * float(want[0]))
        cases.assert_gradient(got[1], want[1], 1e-6 + torch.finfo(dtype).eps)
    with torch.no_grad():
        cases.assert_close(compiled(e, t), want[0], 1e-6 * float(want[0]))
    torch._dynamo.reset()


def test_operator(backend: str):
    if backend == "reference":
        pytest.skip("it has no operator")
    plan = build(**TINY)._plan()
    e, t = leaves()
    arguments = (e, t, *module.encode(plan), "eager", True)
    torch.library.opcheck(module.complex_stft, arguments)
    assert module.decode(*module.encode(plan)) == plan
