"""One check for every plan: the Triton backend against its eager twin and the float64 reference."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from cases import relative
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from torch_l1snr_fast import reference
from torch_l1snr_fast.kernels import eager
from torch_l1snr_fast.kernels import triton as kernels
from torch_l1snr_fast.kernels.eager.waveform import compute_dtype
from torch_l1snr_fast.kernels.plan import Evaluation, Objective, Plan, Resolution

WAVEFORM = Objective(weight=0.4)
LEVEL = Objective(weight=0.6, regularize=True)
BLEND = Objective(l1_weight=0.3, l1_scale=2.5, regularize=True, reg_coef=0.7, lmin=-20.0)
ENERGY = Objective(power=2, eps=1e-6, tau=1e-3)
PURE = Objective(l1_weight=1.0)

SPECTRUM = Objective(weight=0.5, parts=2)
SPECTRUM_LEVEL = SPECTRUM._replace(regularize=True, reg_coef=0.1)
SPECTRUM_BLEND = SPECTRUM_LEVEL._replace(l1_weight=0.4, l1_scale=3.0)
SPECTRUM_PURE = SPECTRUM._replace(l1_weight=1.0)

MULTI = Plan(
    LEVEL,
    SPECTRUM,
    (Resolution(16, 4, 16), Resolution(15, 6, 11, "hamming"), Resolution(32, 8, 32)),
    sanitize_spectrum=True,
)


class Result(NamedTuple):
    evaluation: Evaluation
    gradient: Tensor


def signals(
    *shape: int, dtype: torch.dtype = torch.float64, device: Any = "cpu", seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Estimates and actuals whose rows differ in level and in error; some are too quiet."""
    generator = torch.Generator().manual_seed(seed)
    t, noise = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    level = torch.logspace(-2, 0, shape[0], dtype=torch.float64)[:, None, None]
    gain = torch.linspace(0.4, 1.3, shape[0], dtype=torch.float64)[:, None, None]
    e = level * (gain * t + 0.3 * noise)
    return e.to(device, dtype), (level * t).to(device, dtype)


def layouts(x: Tensor) -> dict[str, Tensor]:
    """The same [B, C, L] as it may come from models and data loaders."""
    batch, channels, length = x.shape
    wide = x.new_full((batch, 2 * channels, length + 7), float("nan"))
    wide[:, ::2, 3 : 3 + length] = x
    return {
        "sliced": wide[:, ::2, 3 : 3 + length],
        "channels last": x.mT.contiguous().mT,
        "every other sample": x.repeat_interleave(2, dim=-1)[..., ::2],
        "rows apart": x.transpose(0, 1).contiguous().transpose(0, 1),
        "expanded": x[:, :1].expand(-1, channels, -1),
        "one row for all": x[:1].expand(batch, -1, -1),
        "constant": x[..., :1].expand(-1, -1, length),
    }


def incoming(plan: Plan, batch: int, device: Any) -> Tensor:
    """A gradient for the loss that is no row's like another's."""
    g = torch.linspace(-1.5, 1.1, batch, dtype=torch.float64, device=device)
    return g if plan.reduction == "none" else g[0]


def run(backend: Any, plan: Plan, e: Tensor, t: Tensor) -> Result:
    """Statistics, objective and gradient of one backend."""
    found = backend.statistics(plan, e, t, save=True)
    dtype = compute_dtype(e, t)
    value = backend.objective(plan, found.partials, *e.shape[1:], dtype)
    coefficients = value.coefficients * incoming(plan, e.shape[0], e.device)
    # Without levels the estimates may have changed: only their shape, dtype and device count.
    given = e if plan.has_level else torch.full_like(e, float("nan"))
    return Result(value, backend.gradient(plan, found.saved, coefficients, given, dtype))


def run_reference(plan: Plan, e: Tensor, t: Tensor) -> Result:
    """The same by autograd, in float64."""
    e = e.detach().double().requires_grad_()
    value = reference.loss(plan, e, t.double())
    value.loss.backward(incoming(plan, e.shape[0], e.device))
    return Result(value, e.grad)


def assert_close(name: str, got: Tensor, want: Tensor, bound: float, dim: Any = ()) -> None:
    """Within ``bound`` of the largest value wanted along ``dim``, not finite in the same places."""
    got, want = got.detach().double(), want.detach().double()
    assert got.shape == want.shape, (name, got.shape, want.shape)
    size = want.abs().nan_to_num(0.0, 0.0, 0.0)
    size = size.amax(dim, keepdim=True) if dim else size
    error = (got - want).abs().masked_fill((got == want) | (got.isnan() & want.isnan()), 0.0)
    worst = (error - bound * size).argmax()
    assert (error <= bound * size).all(), (name, got.flatten()[worst], want.flatten()[worst])


def assert_equal(got: Result, want: Result, bound: float) -> None:
    assert_close("loss", got.evaluation.loss, want.evaluation.loss, 4 * bound)
    assert_close("parts", got.evaluation.parts, want.evaluation.parts, bound, dim=(0, 1, 2))
    assert int(got.evaluation.nonfinite) == int(want.evaluation.nonfinite)
    assert_close("gradient", got.gradient, want.gradient, bound, dim=(1, 2))


def check(
    plan: Plan, e: Tensor, t: Tensor, bound: float = 1e-12, by_reference: bool = True
) -> Result:
    """Equal to eager and to the reference; dtypes and layout as promised, nothing written to."""
    before = e.clone(), t.clone()
    got = run(kernels, plan, e, t)
    assert torch.equal(e.nan_to_num(7.0), before[0].nan_to_num(7.0))
    assert torch.equal(t.nan_to_num(7.0), before[1].nan_to_num(7.0))
    assert got.gradient.dtype == e.dtype
    assert got.gradient.is_contiguous()
    assert got.evaluation.loss.dtype == compute_dtype(e, t)
    twin = run(eager, plan, e, t)
    assert_equal(got, twin, bound)
    assert_close("coefficients", got.evaluation.coefficients, twin.evaluation.coefficients, bound)
    if by_reference:
        assert_equal(got, run_reference(plan, e, t), bound)
    return got


class Operators(TorchDispatchMode):
    """Names of the operators that launch something on a GPU: those that do not view or allocate."""

    FREE = ("empty", "new_empty", "detach", "lift_fresh")

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.names = names

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if not func.is_view and name not in self.FREE:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


@contextmanager
def launches() -> Iterator[list[str]]:
    """Names of all that is launched inside, in order; the kernels are not run."""
    names: list[str] = []

    def record(kernel: Any, *args: Any, **kwargs: Any) -> None:
        names.append(kernel.fn.__name__)

    with mock.patch.object(triton.JITFunction, "run", record), Operators(names):
        yield names


def assert_alike(got: Tensor, want: Tensor, bound: float) -> None:
    """What two variants of a kernel compute: the same bits with the pinned Triton.

    Others let LLVM fuse other multiply-adds in one than in the other.
    """
    if triton.__version__.startswith("3.6."):
        assert torch.equal(got, want)
    else:
        assert got.dtype == want.dtype
        assert relative(got, want) <= bound
