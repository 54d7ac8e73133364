"""Within PyTorch's modes: what is computed there, and what is left behind for everyone after."""

from __future__ import annotations

import ast
import functools
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cases
import pytest
import torch
from cases import KINDS, signals, value_and_grad
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

import torch_l1snr_fast as package
from torch_l1snr_fast.kernels import complex_plan, modes, plan
from torch_l1snr_fast.kernels.eager import stft, workspace

ROOT = Path(package.__file__).parent.parent
COMPLEX = "MultiResolutionComplexSTFTLoss"
LOSSES = (*KINDS, COMPLEX)
OPTIONS = {
    "MultiL1SNRDBLoss": {"use_spec_regularization": True},
    COMPLEX: {"win_lengths": [64, 20], "n_fft": 32, "hop_lengths": 7},
}
CPU = torch.device("cpu")


def build(kind: str, **options: Any) -> torch.nn.Module:
    options |= OPTIONS.get(kind, {})
    if kind == COMPLEX:
        return package.MultiResolutionComplexSTFTLoss("loss", **options)
    return cases.build(kind, **options)


class Sees(TorchDispatchMode):
    """Looks at every operator and changes none."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        return function(*args, **(kwargs or {}))


class Tagged(Tensor):
    """A subclass that a mode of functions can make of everything."""


class Tags(TorchFunctionMode):
    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        out = function(*args, **(kwargs or {}))
        return out.as_subclass(Tagged) if type(out) is Tensor else out


def under(mode: Any) -> Callable[..., Any]:
    def call(f: Callable[..., Tensor], e: Tensor, t: Tensor) -> None:
        with mode():
            f(e, t)

    return call


def fake(f: Callable[..., Tensor], e: Tensor, t: Tensor) -> None:
    with FakeTensorMode() as mode:
        f(mode.from_tensor(e).requires_grad_(), mode.from_tensor(t)).backward()


def dual(f: Callable[..., Tensor], e: Tensor, t: Tensor) -> None:
    with forward_ad.dual_level():
        f(forward_ad.make_dual(e, torch.ones_like(e)), t)


def exported(f: Callable[..., Tensor], e: Tensor, t: Tensor) -> None:
    class Model(torch.nn.Module):
        def forward(self, e: Tensor, t: Tensor) -> Tensor:
            return f(e, t)

    torch.export.export(Model(), (e, t), strict=False)


MODES: dict[str, Callable[[Callable[..., Tensor], Tensor, Tensor], Any]] = {
    "grad": lambda f, e, t: torch.func.grad(f)(e, t),
    "vmap": lambda f, e, t: torch.func.vmap(lambda a, b: f(a[None], b[None]))(e, t),
    "jvp": lambda f, e, t: torch.func.jvp(f, (e, t), (e, t)),
    "functionalize": lambda f, e, t: torch.func.functionalize(f)(e, t),
    "dual numbers": dual,
    "fake": fake,
    "export": exported,
    "make_fx": lambda f, e, t: make_fx(f)(e, t),
    "make_fx symbolic": lambda f, e, t: make_fx(f, tracing_mode="symbolic")(e, t),
    "make_fx pre_dispatch": lambda f, e, t: make_fx(f, pre_dispatch=True)(e, t),
    "jit.trace": lambda f, e, t: torch.jit.trace(f, (e, t), check_trace=False),
    "compile": lambda f, e, t: torch.compile(f, backend="aot_eager")(e, t),
    "compiled grad": lambda f, e, t: torch.compile(torch.func.grad(f), backend="aot_eager")(e, t),
    "inference": under(torch.inference_mode),
    "dispatch mode": under(Sees),
    "function mode": under(Tags),
    "default device": under(lambda: torch.device("meta")),
}


def caches() -> list[modes.Cache]:
    functions = [plan.window, stft.level_weights, complex_plan.hann]
    try:
        from torch_l1snr_fast.kernels.triton.fft import twiddles
        from torch_l1snr_fast.kernels.triton.objective import settings
    except ImportError:
        pass
    else:
        functions += [twiddles, settings]
    return [function.cache for function in functions]


@pytest.fixture(autouse=True)
def cold() -> Iterator[None]:
    """As in a fresh process: nothing is kept yet."""
    for cache in caches():
        cache.tensors = {}
    workspace._kept.__init__()
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def assert_plain(x: Tensor) -> None:
    assert type(x) is Tensor
    assert not torch._C._functorch.is_functorch_wrapped_tensor(x)
    assert not x.is_inference()
    assert not x.requires_grad
    assert x.device.type == "cpu"
    assert forward_ad.unpack_dual(x).tangent is None if forward_ad._current_level >= 0 else True


def assert_all_plain() -> None:
    kept = [x for cache in caches() for x in cache.tensors.values()]
    scratch = workspace._kept
    for x in [*kept, *scratch.buffers.values(), *scratch.views.values()]:
        assert_plain(x)


# What is kept


@pytest.mark.parametrize("mode", MODES)
def test_what_is_kept_is_plain(mode: str):
    """Each cache, filled first within each mode."""

    def filled(e: Tensor, t: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            plan.Resolution(8, 4, 6).window(torch.float32, CPU)
            stft.level_weights((plan.Resolution(8, 4, 6),), 20, torch.float32, CPU)
            complex_plan.hann(8, torch.float32, CPU)
            if len(caches()) > 3:
                from torch_l1snr_fast.kernels.triton.fft import twiddles
                from torch_l1snr_fast.kernels.triton.objective import settings

                twiddles(8, CPU)
                settings(plan.Plan(plan.Objective(), None), CPU)
        return (e * t).sum()

    MODES[mode](filled, *signals(2, 2, cases.LENGTH))
    assert_all_plain()
    compiled = mode in ("compile", "compiled grad", "export")  # what is made is the graph's
    assert compiled or all(cache.tensors for cache in caches())


@pytest.mark.parametrize("backend", ["eager", "reference"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["MultiL1SNRDBLoss", COMPLEX])
def test_a_loss_in_a_mode_harms_nobody_after(kind: str, mode: str, backend: str):
    loss = build(kind)
    e, t = signals(2, 2, cases.LENGTH)
    with package.use_backend(backend):
        MODES[mode](loss, e, t)
        assert_all_plain()
        got = value_and_grad(loss, e, t)
        for cache in caches():
            cache.tensors = {}
        want = value_and_grad(loss, e, t)
    cases.assert_close(got[0], want[0], 0.0)
    cases.assert_gradient(got[1], want[1], 0.0)


def test_compiled_after_a_functional_gradient():
    """This was a segmentation fault."""
    loss = build("MultiL1SNRDBLoss")
    e, t = signals(2, 2, cases.LENGTH)
    torch.func.grad(loss)(e, t)
    cases.assert_close(torch.compile(loss, backend="aot_eager")(e, t), loss(e, t), 1e-12)


@pytest.mark.parametrize("kind", LOSSES)
def test_a_mode_that_sees_operators_sees_one(kind: str):
    """Value and gradient are those without the mode, also where it caches or counts."""
    loss = build(kind)
    pair = signals(2, 2, cases.LENGTH)
    want = value_and_grad(loss, *pair)
    with Sees():
        got = value_and_grad(loss, *pair)
    cases.assert_close(got[0], want[0], 0.0)
    cases.assert_gradient(got[1], want[1], 1e-14)


def test_a_second_derivative_within_such_a_mode_raises_and_names_the_remedy():
    loss = build("L1SNRLoss")
    e, t = signals(2, cases.LENGTH)
    e.requires_grad_()
    with Sees():
        with pytest.raises(RuntimeError, match=r"use_backend\('reference'\)"):
            torch.autograd.grad(loss(e, t), e, create_graph=True)
        with package.use_backend("reference"):
            (first,) = torch.autograd.grad(loss(e, t), e, create_graph=True)
            (second,) = torch.autograd.grad(first.square().sum(), e)
    assert second.abs().sum() > 0


def test_memory_is_bounded_by_bytes():
    """Many lengths, as of whole songs in validation, leave next to nothing behind."""
    resolutions = (plan.Resolution(64, 16, 64),)
    for length in range(200_000, 230_000, 1000):
        stft.level_weights(resolutions, length, torch.float32, CPU)
    kept = sum(x.nbytes for x in stft.level_weights.cache.tensors.values())
    assert 0 < kept <= 1 << 23


def test_what_is_larger_than_the_bound_is_not_kept():
    made = []

    @modes.kept(at_most=100)
    def zeros(length: int) -> Tensor:
        made.append(length)
        return torch.zeros(length, dtype=torch.int8, device="cpu")

    for length in (60, 60, 101, 101, 40, 60, 40, 30, 40, 60):
        zeros(length)
    assert made == [60, 101, 101, 40, 30, 60]  # 30 took the place of 60, the oldest


# Devices


class Nameless(TorchFunctionMode):
    """Fails where a tensor is made on whatever device is the default."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        from torch.utils._device import _device_constructors

        if function in _device_constructors():
            assert (kwargs or {}).get("device") is not None, function
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("backend", ["eager", "reference"])
@pytest.mark.parametrize("kind", LOSSES)
def test_the_default_device_does_not_matter(kind: str, backend: str):
    pair = signals(2, 2, cases.LENGTH)
    pair[0][0, 0, 3] = torch.nan  # the sanitized way, where there is one
    g = cases.incoming(torch.empty(()))
    with package.use_backend(backend), cases.recorded():
        for mode in (Nameless(), torch.device("meta")):
            e = pair[0].clone().requires_grad_()
            loss = build(kind)
            with mode:
                value = loss(e, pair[1])
                value.backward(g.to(value.dtype))
            assert value.device == e.grad.device == CPU


@cases.needs_upstream
@pytest.mark.parametrize("kind", LOSSES)
def test_nor_does_it_to_triton(kind: str):
    """Up to the launches, which are left out."""
    pytest.importorskip("triton")
    from benchmarks import host

    both = {"n_ffts": [256, 50], "hop_lengths": [64, 20], "win_lengths": [200, 40]}  # on-chip, not
    on_chip = {"win_lengths": [256, 20], "n_fft": 256, "hop_lengths": 64}
    options = on_chip if kind == COMPLEX else both if kind in cases.SPECTRAL else {}
    loss = type(build(kind))("loss", **options)
    host.Compiled.launched = 0
    call = host.step(loss, 600)
    with host.still(), Nameless():
        call()
    assert host.Compiled.launched > 0


FACTORIES = {
    *("empty", "zeros", "ones", "full", "tensor", "as_tensor", "arange", "linspace", "logspace"),
    *("eye", "rand", "randn", "randint", "randperm", "scalar_tensor", "empty_strided"),
    *("from_numpy", "hann_window", "hamming_window", "kaiser_window"),
}


def nameless_factories(source: str) -> list[int]:
    """Lines that make a tensor on no device in particular."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and (node.func.value.id, node.func.attr in FACTORIES) == ("torch", True)
        and not {"device", None} & {keyword.arg for keyword in node.keywords}  # None: **new
    ]


def test_every_factory_names_its_device():
    assert nameless_factories("x = torch.zeros(3, dtype=d)\ny = torch.zeros(3, device=d)") == [1]
    for folder in (ROOT / "torch_l1snr_fast", ROOT / "kernels"):
        for path in folder.rglob("*.py"):
            assert not nameless_factories(path.read_text()), path


def test_no_tensor_is_kept_in_another_way():
    """But in launches, by reference: test_launching.py's test_prepared_in_a_mode."""
    found = {path for path in (ROOT / "kernels").rglob("*.py") if "lru_cache" in path.read_text()}
    assert found == {ROOT / "kernels" / "triton" / "launching.py"}


# Tracing and transforms


@pytest.mark.parametrize("options", [{}, {"grad_scale": 0.3}], ids=str)
@pytest.mark.parametrize("kind", LOSSES)
def test_a_traced_loss_computes_and_is_saved(kind: str, options: dict[str, Any]):
    loss = build(kind, **options)
    traced = torch.jit.trace(loss, signals(2, 2, cases.LENGTH, seed=1), check_trace=False)
    assert "hann_window" not in str(traced.inlined_graph)  # what is kept was made outside
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    pair = signals(2, 2, cases.LENGTH)
    want = value_and_grad(loss, *pair)
    for each in (traced, torch.jit.load(file)):
        got = value_and_grad(each, *pair)
        cases.assert_close(got[0], want[0], 1e-12)
        cases.assert_gradient(got[1], want[1], 1e-10)


@pytest.mark.parametrize("kind", LOSSES)
def test_compiled_functional_gradient(kind: str):
    loss = build(kind)
    e, t = signals(2, 2, cases.LENGTH)
    got = torch.compile(torch.func.grad(loss), backend="aot_eager", fullgraph=True)(e, t)
    want = torch.func.grad(loss)(e, t)
    cases.assert_gradient(got, want, 1e-10)


@pytest.mark.parametrize("kind", LOSSES)
def test_compiled_autograd(kind: str):
    from torch._dynamo import compiled_autograd

    loss = build(kind)
    pair = signals(2, 2, cases.LENGTH)
    want = value_and_grad(loss, *pair)
    compiler = torch.compile(backend="aot_eager", fullgraph=True)
    for each in (loss, torch.compile(loss, backend="aot_eager", fullgraph=True)):
        e = pair[0].clone().requires_grad_()
        value = each(e * 1.0, pair[1])
        with compiled_autograd._enable(compiler):
            value.backward(cases.incoming(value))
        cases.assert_close(value.detach(), want[0], 1e-10)
        cases.assert_gradient(e.grad, want[1], 1e-10)


@pytest.mark.parametrize("backend", ["auto", "triton"])
def test_compiled_autograd_of_other_samples(backend: str):
    """What was compiled for one step belongs to no tensor of it."""
    from torch._dynamo import compiled_autograd

    loss = build("L1SNRLoss")
    compiler = torch.compile(backend="aot_eager", fullgraph=True)
    for seed in range(3):
        pair = signals(2, 2, 50 + seed // 2, seed=seed)
        e = pair[0].clone().requires_grad_()
        value = loss(e * 1.0, pair[1])
        with compiled_autograd._enable(compiler):
            value.backward()
        (want,) = torch.autograd.grad(loss(e, pair[1]), e)
        cases.assert_gradient(e.grad, want, 1e-14)


@pytest.mark.parametrize("policy", ["MUST_SAVE", "MUST_RECOMPUTE"])
@pytest.mark.parametrize("kind", LOSSES)
def test_selective_checkpointing(kind: str, policy: str):
    loss = build(kind)
    pair = signals(2, 2, cases.LENGTH)

    def decided(*args: Any, **kwargs: Any) -> CheckpointPolicy:
        return CheckpointPolicy[policy]

    contexts = functools.partial(create_selective_checkpoint_contexts, decided)

    def checkpointed(e: Tensor, t: Tensor) -> Tensor:
        return checkpoint(loss, e, t, use_reentrant=False, context_fn=contexts)

    got, want = value_and_grad(checkpointed, *pair), value_and_grad(loss, *pair)
    cases.assert_close(got[0], want[0], 0.0)
    cases.assert_gradient(got[1], want[1], 1e-14)


@pytest.mark.parametrize("name", [3, None, torch.float32], ids=str)
def test_a_name_that_is_no_string(name: Any):
    loss = package.MultiL1SNRDBLoss(name, **cases.SMALL)
    e, t = signals(2, 2, cases.LENGTH)
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    cases.assert_close(compiled(e, t), loss(e, t), 1e-12)


@pytest.fixture
def mesh() -> Iterator[Any]:
    distributed = torch.distributed
    store = distributed.HashStore()
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield distributed.device_mesh.init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


@pytest.mark.parametrize("kind", LOSSES)
def test_distributed_tensors(kind: str, mesh: Any):
    """What torch-l1-snr computes of them is computed; of spectra it returns wrong numbers."""
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    loss = build(kind)
    pair = signals(2, 2, cases.LENGTH)
    want = value_and_grad(loss, *pair)
    for placement in (Replicate(), Shard(0)):
        e, t = (distribute_tensor(x, mesh, [placement]) for x in pair)
        e.requires_grad_()
        if "STFT" in kind or "Multi" in kind:
            with pytest.raises(TypeError, match=r"to_local|full_tensor"):
                loss(e, t)
            continue
        value = loss(e, t)
        (gradient,) = torch.autograd.grad(value, e)
        cases.assert_close(value.full_tensor(), want[0], 1e-12)
        cases.assert_gradient(gradient.full_tensor() * cases.incoming(want[0]), want[1], 1e-10)
