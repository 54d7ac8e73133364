"""torch.compile(fullgraph=True): equal values and gradients, no graph break, no new compilation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cases
import pytest
import torch
from cases import KINDS, SPECTRAL, build, signals, value_and_grad
from torch._dynamo.testing import CompileCounterWithBackend

import torch_l1snr_fast as package

OPTIONS = {
    "L1SNRLoss": {"l1_weight": 0.3},
    "L2SNRLoss": {},
    "L1SNRDBLoss": {"l1_weight": 0.3},
    "STFTL1SNRDBLoss": {"l1_weight": 0.3, "use_regularization": True},
    "MultiL1SNRDBLoss": {"use_spec_regularization": True, "grad_scale": 0.3},
}


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def counter() -> CompileCounterWithBackend:
    """Counts the graphs; runs them without generating code, which takes seconds each."""
    return CompileCounterWithBackend("aot_eager")


def assert_same(compiled: Any, plain: Any, *pair: torch.Tensor) -> None:
    got, want = value_and_grad(compiled, *pair), value_and_grad(plain, *pair)
    assert got[0].dtype == want[0].dtype
    assert got[1].dtype == want[1].dtype
    exact = 1e-12 if pair[0].dtype == torch.float64 else 1e-5
    cases.assert_close(got[0], want[0], exact * max(1.0, float(want[0].abs().max())))
    cases.assert_gradient(got[1], want[1], exact + torch.finfo(pair[0].dtype).eps)


@pytest.mark.parametrize("kind", KINDS)
def test_inductor(kind: str):
    """The default compiler, with a model's operations around the loss to be fused with."""
    loss = build(kind, **OPTIONS[kind])

    def step(e: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return 2 * loss(torch.tanh(e), t)

    compiled = torch.compile(step, fullgraph=True)
    assert_same(compiled, step, *signals(2, 2, cases.LENGTH, dtype=torch.float32))
    with torch.no_grad():
        e, t = signals(2, 2, cases.LENGTH, dtype=torch.float32)
        cases.assert_close(compiled(e, t), step(e, t), 1e-4)


@pytest.mark.parametrize("options", [{}, {"reduction": "none"}, {"reduction": "sum"}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_one_graph(kind: str, dtype: torch.dtype, options: dict[str, Any]):
    loss = build(kind, **(OPTIONS[kind] | options))
    graphs = counter()
    compiled = torch.compile(loss, backend=graphs, fullgraph=True)
    assert_same(compiled, loss, *signals(2, 2, cases.LENGTH, dtype=dtype))
    assert graphs.frame_count == 1
    assert_same(compiled, loss, *signals(2, 2, cases.LENGTH, seed=1, dtype=dtype))
    assert graphs.frame_count == 1


@pytest.mark.parametrize("kind", KINDS)
def test_matches_the_oracle(kind: str):
    """Not just itself uncompiled."""
    e, t = signals(2, 2, cases.LENGTH)
    compiled = torch.compile(build(kind, **OPTIONS[kind]), backend=counter(), fullgraph=True)
    options = {k: v for k, v in OPTIONS[kind].items() if k != "grad_scale"}
    cases.assert_close(compiled(e, t), cases.expected(kind, e, t, **options)[0].mean(), 1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_new_instance_does_not_recompile(kind: str):
    """Trainers build their loss every step."""
    graphs = counter()

    @torch.compile(backend=graphs, fullgraph=True)
    def step(loss: Any, e: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return loss(e, t)

    e, t = signals(2, 2, cases.LENGTH)
    for _ in range(3):
        step(build(kind, **OPTIONS[kind]), e.requires_grad_(), t).backward()
    assert graphs.frame_count == 1


@pytest.mark.parametrize("kind", KINDS)
def test_built_inside(kind: str):
    def step(e: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = build(kind, **OPTIONS[kind])(e, t)
        return loss

    compiled = torch.compile(step, backend=counter(), fullgraph=True)
    assert_same(compiled, step, *signals(2, 2, cases.LENGTH))


def test_a_new_length_is_compiled_at_most_once_more():
    """The second length makes the length a variable; the third costs nothing."""
    graphs = counter()
    loss = build("MultiL1SNRDBLoss")
    compiled = torch.compile(loss, backend=graphs, fullgraph=True)
    for length in (301, 333, 412, 287):
        assert_same(compiled, loss, *signals(2, 2, length))
    assert graphs.frame_count <= 2


# Settings that trainers schedule, with those that make them count.
SCHEDULED = [
    ("L1SNRLoss", "weight", {}),
    ("L1SNRLoss", "eps", {"l1_weight": 0.3}),
    ("L1SNRLoss", "ref_level", {"l1_weight": 0.3}),
    ("L1SNRLoss", "weight", {"l1_weight": 1.0}),
    ("L1SNRLoss", "grad_scale", {}),
    ("L2SNRLoss", "tau", {}),
    ("L1SNRDBLoss", "reg_coef", {}),
    ("L1SNRDBLoss", "lambda0", {}),
    ("L1SNRDBLoss", "l1_scale", {"l1_weight": 0.3, "l1_scale": 0.7}),
    ("STFTL1SNRDBLoss", "weight", {}),
    ("STFTL1SNRDBLoss", "spec_reg_coef", {"use_regularization": True}),
    ("MultiL1SNRDBLoss", "weight", {}),
    ("MultiL1SNRDBLoss", "spec_weight", {"grad_scale": 0.3}),
]


@pytest.mark.parametrize(("kind", "name", "options"), SCHEDULED)
def test_a_scheduled_setting_is_compiled_at_most_once_more(
    kind: str, name: str, options: dict[str, Any]
):
    """Its second value makes it a variable; the others cost nothing."""
    follow_schedule(kind, name, options, signals(2, 2, cases.LENGTH))


@pytest.mark.parametrize("name", ["weight", "reg_coef", "l1_scale", "grad_scale"])
def test_the_same_where_the_target_needs_a_gradient(name: str):
    e, t = signals(2, 2, cases.LENGTH)
    options = {"l1_weight": 0.3, "l1_scale": 0.7}
    follow_schedule("L1SNRDBLoss", name, options, (e, t.requires_grad_()))


def follow_schedule(kind: str, name: str, options: dict[str, Any], pair: Any) -> None:
    graphs = counter()
    loss = build(kind, **options)
    compiled = torch.compile(loss, backend=graphs, fullgraph=True)
    values = []
    for value in (0.75, 0.5, 0.3, 0.9):
        setattr(loss, name, value)
        assert_same(compiled, loss, *pair)
        values.append(float(loss(*pair).detach()))
    assert graphs.frame_count <= 2
    assert name == "grad_scale" or len(set(values)) == len(values)


def test_a_scheduled_setting_with_code_generated():
    loss = build("MultiL1SNRDBLoss")
    compiled = torch.compile(loss, fullgraph=True)
    with torch._dynamo.config.patch(recompile_limit=2):
        for value in (0.75, 0.5, 0.3, 0.9):
            loss.spec_weight = value
            assert_same(compiled, loss, *signals(2, 2, cases.LENGTH))


def test_components_stems_and_parts():
    graphs = counter()
    e, t = signals(2, 4, cases.LENGTH)
    loss = build(
        "MultiL1SNRDBLoss",
        stem_dimension=[0, 2],
        time_loss_module=package.L2SNRLoss("time"),
        use_time_regularization=False,
        grad_scale=0.3,
    )
    assert_same(torch.compile(loss, backend=graphs, fullgraph=True), loss, e, t)
    compiled = torch.compile(
        lambda *x: loss(*x, return_components=True), backend=graphs, fullgraph=True
    )
    (value, parts), (want, wanted) = compiled(e, t), loss(e, t, return_components=True)
    cases.assert_close(value, want, 1e-12)
    assert parts.keys() == wanted.keys()
    for name, part in parts.items():
        cases.assert_close(part, wanted[name], 1e-12)
    assert graphs.frame_count == 2


@pytest.mark.parametrize("kind", KINDS)
def test_target_gradient_and_the_loss_uncompiled_afterwards(kind: str):
    """The route through the reference; tracing it must leave no traced window in the cache."""
    sizes = {"n_ffts": [60], "hop_lengths": [14], "win_lengths": [53]} if kind in SPECTRAL else {}
    loss = build(kind, **(OPTIONS[kind] | sizes))
    compiled = torch.compile(loss, backend=counter(), fullgraph=True)
    e, t = (x.requires_grad_() for x in signals(2, 2, cases.LENGTH))
    got = torch.autograd.grad(compiled(e, t), (e, t))
    want = torch.autograd.grad(loss(e, t), (e, t))
    for a, b in zip(got, want, strict=True):
        cases.assert_gradient(a, b, 1e-10)


@pytest.mark.parametrize("kind", ["STFTL1SNRDBLoss", "MultiL1SNRDBLoss"])
def test_warnings_survive_compilation(kind: str):
    """What is not finite is found at run time, what is too short at trace time; both are said."""
    e, t = signals(2, 2, cases.LENGTH)
    bad = e.clone()
    bad[0, 0, 5] = torch.nan
    name = f"warned-{kind}"
    loss = getattr(package, kind)(name, **cases.SMALL)
    compiled = torch.compile(loss, backend=counter(), fullgraph=True)
    with cases.recorded() as caught:
        compiled(e, t)
    assert not [w for w in caught if w.category is RuntimeWarning]
    with cases.recorded() as caught:
        value = compiled(bad, t)
        compiled(bad, t)
    (warning,) = [w for w in caught if w.category is RuntimeWarning]
    assert name in str(warning.message)
    assert value.isfinite() == (kind == "STFTL1SNRDBLoss")


@pytest.mark.parametrize("least", [10, 31], ids=["dropped", "fallback"])
@pytest.mark.parametrize("kind", SPECTRAL)
def test_short_audio_compiles(kind: str, least: int):
    """Values, gradients, no graph break, and still a warning, at the latest while tracing."""
    e, t = signals(2, 30)
    loss = build(kind, min_audio_length=least)
    compiled = torch.compile(loss, backend=counter(), fullgraph=True)
    with pytest.warns(RuntimeWarning):
        assert_same(compiled, loss, e, t)


@pytest.mark.parametrize("backend", ["eager", "reference"])
def test_the_chosen_backend_is_compiled(backend: str):
    loss = build("MultiL1SNRDBLoss")
    with package.use_backend(backend):
        compiled = torch.compile(loss, backend=counter(), fullgraph=True)
        assert_same(compiled, loss, *signals(2, 2, cases.LENGTH))


def test_operator_registration():
    """torch's own checks of the custom operator: schema, fake tensors, autograd, dynamic shapes."""
    from torch_l1snr_fast.autograd import decode, encode, value_and_gradient
    from torch_l1snr_fast.kernels.plan import Objective, Plan, Resolution

    stft = Objective(parts=2, regularize=True)
    plan = Plan(Objective(regularize=True), stft, (Resolution(16, 4, 16), Resolution(9, 5, 7)))
    e, t = signals(2, 2, 40)
    arguments = (e.requires_grad_(), t, *encode(plan), "eager", True, "name")
    torch.library.opcheck(value_and_gradient, arguments)
    numbers, settings, *rest = encode(plan)
    assert numbers is None
    variables = torch.tensor(settings, dtype=torch.float64)
    assert decode(variables, [], *rest) == decode(None, settings, *rest) == plan
    arguments = (e, t, variables, [], *rest, "eager", True, "name")
    torch.library.opcheck(value_and_gradient, arguments)
