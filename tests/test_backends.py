"""Choosing a backend, and what may be missing: triton, torchaudio, a GPU."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import cases
import pytest
import torch
from cases import KINDS, build, signals, value_and_grad

import torch_l1snr_fast as package
from torch_l1snr_fast import backends

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def no_triton(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if Triton were not installed; what was found out about it before is forgotten."""
    forget()
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: None)
    yield
    forget()


def forget() -> None:
    backends.triton_problem.__wrapped__.cache_clear()
    backends._warn_without_triton.__wrapped__.cache_clear()


def chosen(device: torch.device = CPU) -> str:
    return backends.select_backend(device)


# use_backend


def test_automatic_choice_on_a_cpu():
    package.use_backend("auto")
    assert chosen() == "eager"
    assert chosen(torch.device("mps")) == "eager"


def test_plain_call_lasts_and_context_ends():
    package.use_backend("reference")
    assert chosen() == "reference"
    with package.use_backend("eager"):
        assert chosen() == "eager"
    assert chosen() == "reference"


def fail(backend: str) -> None:
    assert backend == "reference"
    raise ZeroDivisionError


def test_nesting_and_exceptions():
    with package.use_backend("eager"):
        with pytest.raises(ZeroDivisionError), package.use_backend("reference"):
            fail(chosen())
        assert chosen() == "eager"
        with package.use_backend("auto"):
            package.use_backend("reference")
            assert chosen() == "reference"
        assert chosen() == "eager"


@pytest.mark.parametrize("name", ["cuda", "", "Eager", None, 3])
def test_unknown_backend(name: Any):
    package.use_backend("reference")
    with pytest.raises(ValueError, match=r"auto, triton, eager, reference.*" + repr(name)):
        package.use_backend(name)
    assert chosen() == "reference", "a failed choice changed the choice"


@pytest.mark.parametrize("kind", KINDS)
def test_the_choice_decides_who_computes(kind: str, monkeypatch: pytest.MonkeyPatch):
    """Each backend is really used: the other is broken meanwhile."""
    from torch_l1snr_fast import reference
    from torch_l1snr_fast.kernels import eager

    def broken(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("the wrong backend computes")

    pair = signals(2, cases.LENGTH)
    with monkeypatch.context() as patch, package.use_backend("eager"):
        patch.setattr(reference, "loss", broken)
        value_and_grad(build(kind), *pair)
    with monkeypatch.context() as patch, package.use_backend("reference"):
        patch.setattr(eager, "statistics", broken)
        patch.setattr(eager, "gradient", broken)
        value_and_grad(build(kind), *pair)
    with monkeypatch.context() as patch, package.use_backend("auto"):
        patch.setattr(reference, "loss", broken)
        value_and_grad(build(kind), *pair)


def test_eager_still_answers_what_only_the_reference_can():
    """Asking for eager does not make a target gradient wrong or None."""
    e, t = signals(2, cases.LENGTH)
    with package.use_backend("eager"):
        loss = build("MultiL1SNRDBLoss")(e, t.requires_grad_())
    (gradient,) = torch.autograd.grad(loss, t)
    assert gradient.abs().sum() > 0


# Triton


def test_triton_on_cpu_tensors_raises_and_names_the_remedy():
    forget()
    with (
        package.use_backend("triton"),
        pytest.raises(RuntimeError, match=r"does not run on 'cpu' tensors.*use_backend\('auto'\)"),
    ):
        build("L1SNRLoss")(*signals(2, 50))
    forget()


@pytest.mark.usefixtures("no_triton")
def test_triton_that_is_missing_raises_and_names_the_remedy():
    for device in (CPU, CUDA):
        with (
            package.use_backend("triton"),
            pytest.raises(RuntimeError, match=r"pip install triton"),
        ):
            chosen(device)


@pytest.mark.usefixtures("no_triton")
def test_gpu_without_triton_warns_once():
    package.use_backend("auto")
    with cases.recorded() as caught:
        assert chosen(CUDA) == chosen(CUDA) == chosen(torch.device("xpu")) == "eager"
        assert chosen(CPU) == "eager"
    (warning,) = caught
    assert warning.category is RuntimeWarning
    assert "triton" in str(warning.message)
    assert "slower" in str(warning.message)


@pytest.mark.usefixtures("no_triton")
@pytest.mark.parametrize("name", ["eager", "reference"])
def test_no_warning_for_who_chose(name: str):
    with cases.recorded() as caught, package.use_backend(name):
        assert chosen(CUDA) == name
    assert not caught


@pytest.mark.parametrize("version", ["3.0.1", "3.4.0"])
def test_triton_that_is_too_old_counts_as_missing(version: str, monkeypatch: pytest.MonkeyPatch):
    """3.4, which torch 2.8 brings, does not compile the kernels."""
    triton = pytest.importorskip("triton")
    forget()
    monkeypatch.setattr(triton, "__version__", version)
    reason = re.escape(f"triton {version} is too old") + r".*triton>=3\.5"
    with package.use_backend("triton"), pytest.raises(RuntimeError, match=reason):
        chosen(CUDA)
    with package.use_backend("auto"), pytest.warns(RuntimeWarning, match=reason):
        assert chosen(CUDA) == "eager"
    forget()


@pytest.mark.parametrize("version", ["3.5.0", "3.10.0+git1a2b3c", "4.0.0"])
def test_triton_that_is_new_enough(version: str, monkeypatch: pytest.MonkeyPatch):
    triton = pytest.importorskip("triton")
    forget()
    monkeypatch.setattr(triton, "__version__", version)
    with package.use_backend("auto"):
        assert chosen(CUDA) == "triton"
    forget()


def test_gpu_with_triton_takes_it():
    pytest.importorskip("triton")
    forget()
    package.use_backend("auto")
    assert chosen(CUDA) == "triton"


# In a process of its own


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    import os

    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize("name", ["eager", "reference"])
def test_environment_variable(name: str):
    code = (
        "import torch_l1snr_fast.backends as b, torch; print(b.select_backend(torch.device('cpu')))"
    )
    result = python(code, TORCH_L1SNR_FAST_BACKEND=name)
    assert result.stdout.strip() == name, result.stderr


def test_environment_variable_is_checked():
    result = python("import torch_l1snr_fast", TORCH_L1SNR_FAST_BACKEND="fastest")
    assert result.returncode != 0
    assert "TORCH_L1SNR_FAST_BACKEND" in result.stderr
    assert "'fastest'" in result.stderr


WITHOUT = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("triton", "torchaudio", "numpy", "torch_l1_snr"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocker())
import importlib.util, torch
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name == "triton" else find(name, *a)
"""


def test_works_without_triton_and_torchaudio():
    """torch is the only dependency: import, forward and backward of every loss without the rest."""
    code = (
        WITHOUT
        + """
import torch_l1snr_fast as package
e, t = torch.randn(2, 2, 3000, requires_grad=True), torch.randn(2, 2, 3000)
for kind in ("L1SNRLoss", "L2SNRLoss", "L1SNRDBLoss", "STFTL1SNRDBLoss", "MultiL1SNRDBLoss"):
    for backend in ("auto", "reference"):
        with package.use_backend(backend):
            package.__dict__[kind](kind)(e, t).backward()
assert e.grad.isfinite().all() and e.grad.abs().sum() > 0
assert not {"triton", "torchaudio", "numpy"} & {name.partition(".")[0] for name in sys.modules}
try:
    with package.use_backend("triton"):
        package.L1SNRLoss("x")(e, t)
except RuntimeError as error:
    assert "triton is not installed" in str(error), error
else:
    raise SystemExit("no error")
"""
    )
    result = python(code)
    assert result.returncode == 0, result.stderr


def test_import_brings_in_nothing_but_itself():
    """Beyond what torch has imported already: no torchaudio, triton, compiler or anything else."""
    code = """
import sys, torch
before = set(sys.modules)
import torch_l1snr_fast
print(*sorted(set(sys.modules) - before))
"""
    result = python(code)
    assert result.returncode == 0, result.stderr
    new = result.stdout.split()
    assert "torch_l1snr_fast" in new
    others = {name.partition(".")[0] for name in new} - {"torch_l1snr_fast"}
    # An editable install maps names by a finder of its own.
    others = {name for name in others if not name.startswith("__editable__")}
    assert others <= set(sys.stdlib_module_names) | {"torch"}
    heavy = ("torch._dynamo", "torch._inductor", "torch.fx.experimental", "torchgen", "sympy")
    assert not [name for name in new if name.startswith(heavy)]
    assert "torch_l1snr_fast.kernels.triton" not in new


def test_forward_and_backward_import_neither_torchaudio_nor_triton():
    code = """
import sys, torch, torch_l1snr_fast
before = set(sys.modules)
e = torch.randn(1, 3000, requires_grad=True)
torch_l1snr_fast.MultiL1SNRDBLoss("x")(e, torch.randn(1, 3000)).backward()
new = {name.partition(".")[0] for name in set(sys.modules) - before}
assert not {"torchaudio", "triton", "sympy"} & new, new
"""
    result = python(code)
    assert result.returncode == 0, result.stderr
