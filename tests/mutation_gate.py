"""Breaks the library on purpose, in a copy, and checks that the tests notice: run it by hand.

    python tests/mutation_gate.py [--without-upstream] [words in the titles of those to run]

Each mutation replaces one piece of text, runs the quick tests until the first failure and puts the
text back. One that nothing notices, or whose text is no longer there, fails the gate.
--without-upstream leaves out the comparison with torch-l1-snr, which notices nearly everything: the
rest must do so alone, for CI runs it where torch-l1-snr does not import.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = "torch_l1snr_fast"
FILES = [
    "closed_form",
    "properties",
    "policy",
    "options",
    "autograd",
    "interface",
    "report",
    "backends",
]

OBJECTIVE, STFT = "kernels/eager/objective.py", "kernels/eager/stft.py"
WAVEFORM, EAGER = "kernels/eager/waveform.py", "kernels/eager/__init__.py"

# (what is wrong then, file inside the package, text, its replacement)
MUTATIONS = [
    ("gradient of the wrong sign", EAGER, "return total.to(", "return -total.to("),
    ("lambda not detached", OBJECTIVE, "* share).detach()", "* share)"),
    ("lambda not rounded like upstream's", OBJECTIVE, "eta.float()", "eta.double()"),
    ("eta ignores lmin", OBJECTIVE, "l_pred.clamp(min=l_min)", "l_pred"),
    (
        "no eps in the error",
        OBJECTIVE,
        "(term.eps if term.tau == 0 else",
        "(0.0 if term.tau == 0 else",
    ),
    ("no eps in the reference", OBJECTIVE, "/ (reference + term.eps)", "/ reference"),
    (
        "gradient of D1 without eps",
        OBJECTIVE,
        "(snr_share * C) / floored",
        "(snr_share * C) / error",
    ),
    (
        "regularizer not scaled by 1 - w",
        OBJECTIVE,
        "loss + (snr_share * term.reg_coef) * level",
        "loss + (term.weight * term.reg_coef) * level",
    ),
    (
        "L1 gradient not shared by both parts",
        OBJECTIVE,
        "a = a + l1_share / count",
        "a = a + l1_share",
    ),
    (
        "imaginary parts get the real parts' coefficient",
        OBJECTIVE,
        "a[..., 0], a[..., -1], r",
        "a[..., 0], a[..., 0], r",
    ),
    ("overflow hidden in the gradient", OBJECTIVE, "a = a.add(error, alpha=0)", "a = a + 0"),
    (
        "grad_scale twice",
        OBJECTIVE,
        "share = plan.grad_scale\n",
        "share = plan.grad_scale**2\n",
    ),
    (
        "gradient not divided by the batch",
        OBJECTIVE,
        'loss.mean(), share / len(sums[0])',
        'loss.mean(), share',
    ),
    (
        "borders not folded back",
        STFT,
        "        inner[:, 1 : pad + 1] +=",
        "        inner[:, :0] +=",
    ),
    (
        "right border folded one off",
        STFT,
        "inner[:, length - 1 - pad : length - 1]",
        "inner[:, length - pad : length]",
    ),
    ("edge bins halved too", STFT, "fill_(1.0)", "fill_(0.5)"),
    (
        "interior bins not halved",
        STFT,
        "new_full((res.bins, 1), 0.5)",
        "new_full((res.bins, 1), 1.0)",
    ),
    (
        "odd transforms treated as even",
        STFT,
        "if res.n_fft % 2 == 0 else real",
        "if True else real",
    ),
    (
        "level without its edge bins",
        STFT,
        ".square().sum((1, 2)) / 2",
        ".square().sum((1, 2)) * 0",
    ),
    (
        "level gradient without its edge bins",
        STFT,
        "edge_bins(spectrum, res).addcmul_",
        "edge_bins(spectrum, res).clone().addcmul_",
    ),
    ("level gradient halved", STFT, "r[group, None], value=n)", "r[group, None], value=n / 2)"),
    ("later frames added at the start", STFT, "[:, first : first + count]", "[:, :count]"),
    (
        "two-state signs",
        STFT,
        "signs[group, span] = torch.sign(\n",
        "signs[group, span] = 1 - 2 * torch.signbit(\n",
    ),
    (
        "window left of the centre",
        "kernels/plan.py",
        "(n_fft - win_length) // 2",
        "(n_fft - win_length + 1) // 2",
    ),
    ("window norm in float32", "kernels/plan.py", "exact = window.double()", "exact = window"),
    ("usable one sample too early", "kernels/plan.py", "length > self.pad", "length >= self.pad"),
    ("no hop needed", "kernels/plan.py", " and length >= self.hop_length", ""),
    (
        "mean over one channel",
        "kernels/plan.py",
        "(self.waveform, channels * length)",
        "(self.waveform, length)",
    ),
    ("two-state sign in waveforms", WAVEFORM, "torch.finfo(dtype).tiny) if", "0.0) if"),
    (
        "gradient of L2 halved",
        WAVEFORM,
        "ERROR_GRADIENT[term.power](a,",
        "ERROR_GRADIENT[term.power](a / term.power,",
    ),
    ("level gradient of waveforms missing", WAVEFORM, "place.addcmul_(e, r)", "pass"),
    (
        "half precision summed as it is",
        WAVEFORM,
        "else torch.float32\n\n\ndef sum",
        "else tensors[0].dtype\n\n\ndef sum",
    ),
    (
        "repaired samples get a gradient",
        EAGER,
        "total.addcmul_(spectral, mask)",
        "total.add_(spectral)",
    ),
    ("bad samples not counted", EAGER, "NONFINITE] = count", "NONFINITE] = 0"),
    ("unread samples not scanned", "kernels/plan.py", " and end >= self.pad + length", ""),
    ("Inf repaired to 0", EAGER, "posinf=1.0", "posinf=0.0"),
    (
        "fallback with reg_coef 1",
        "functional.py",
        "        reg_coef=spec_reg_coef,",
        "        reg_coef=1.0,",
    ),
    (
        "fallback ignores l1_scale",
        "functional.py",
        "l1_scale=l1_scale,\n        l1snr_eps",
        "l1_scale=None,\n        l1snr_eps",
    ),
    (
        "spectral blend scale of the waveform",
        "functional.py",
        "2 * C / (level + l1snr_eps)",
        "C / (level + l1snr_eps)",
    ),
    (
        "resolutions summed, not averaged",
        "functional.py",
        "spectrum.objective.weight / len(usable)",
        "spectrum.objective.weight / 1",
    ),
    (
        "dropped resolutions still divide",
        "functional.py",
        "spectrum.objective.weight / len(usable)",
        "spectrum.objective.weight / len(spectrum.resolutions)",
    ),
    ("warned at every call", "notices.py", "self.given.add(kind)", "pass"),
    (
        "spec_weight on both domains",
        "functional.py",
        "weighted(time, 1 - spec_weight)",
        "weighted(time, spec_weight)",
    ),
    (
        "stems unsorted",
        "validation.py",
        "sorted({index % count for index in asked})",
        "list({index % count: 0 for index in asked})",
    ),
    (
        "bools pass as numbers",
        "validation.py",
        "isinstance(value, bool) or not isinstance(value, (int, float))",
        "not isinstance(value, (int, float))",
    ),
    ("lists not copied", "losses.py", "self.n_ffts = list(n_ffts)", "self.n_ffts = n_ffts"),
    (
        "injected module ignored",
        "losses.py",
        "self.time_loss = time_loss_module",
        "self.time_loss = L1SNRDBLoss('x')",
    ),
    (
        "hooks not fired",
        "losses.py",
        "and not (part._forward_hooks or part._forward_pre_hooks)",
        "",
    ),
    ("own gradient scale of a part dropped", "losses.py", "and part.grad_scale == 1.0", ""),
    (
        "grad_scale of the reference missing",
        "reference.py",
        "scaled = scale_gradient(total, plan.grad_scale)",
        "scaled = total",
    ),
    ("second derivative missing", "autograd.py", "if torch.is_grad_enabled():", "if False:"),
    (
        "target gradient dropped",
        "backends.py",
        "torch.is_grad_enabled() and actuals.requires_grad",
        "False",
    ),
    ("context does not end", "backends.py", "_chosen = self._before", "pass"),
    (
        "signs saved for evaluation",
        "autograd.py",
        "torch.is_grad_enabled() and estimates.requires_grad",
        "True",
    ),
]


def copy_of_the_library(folder: Path) -> Path:
    """The package as it is installed: with the kernels inside."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / PACKAGE, folder / PACKAGE, ignore=ignored)
    shutil.copytree(ROOT / "kernels", folder / PACKAGE / "kernels", ignore=ignored)
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder / PACKAGE


def run_tests(folder: Path, tests: list[str]) -> tuple[bool, str]:
    """Whether all pass, and the first that did not."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    result = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    found = re.search(r"^(?:FAILED|ERROR) tests/(.*?)(?: - .*)?$", result.stdout, re.MULTILINE)
    return result.returncode == 0, found[1] if found else result.stdout[-2000:]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--without-upstream", action="store_true")
    parser.add_argument("words", nargs="*")
    arguments = parser.parse_args()
    files = FILES if arguments.without_upstream else ["upstream", *FILES]
    tests = [f"tests/test_{name}.py" for name in files]
    missed = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        package = copy_of_the_library(folder)
        check = f"import {PACKAGE} as p; assert p.__file__.startswith({str(folder)!r}), p.__file__"
        subprocess.run([sys.executable, "-c", check], cwd=folder, check=True)
        passed, first = run_tests(folder, tests)
        if not passed:
            print(f"the unbroken library fails {first}")
            return 1
        for title, file, old, new in MUTATIONS:
            if arguments.words and not any(word in title for word in arguments.words):
                continue
            path = package / file
            text = path.read_text()
            if text.count(old) != 1:
                missed += 1
                print(f"STALE    {title}: {text.count(old)} times in {file}: {old!r}", flush=True)
                continue
            path.write_text(text.replace(old, new))
            passed, first = run_tests(folder, tests)
            path.write_text(text)
            missed += passed
            print(f"{'MISSED  ' if passed else 'noticed '} {title}: {first}"[:160], flush=True)
    print(f"{missed} missed or stale")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
