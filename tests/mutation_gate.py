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

LIMIT = 1200  # seconds, which only an endless loop takes

# Of kernels in Triton: those that see a file's mistakes first.
TRITON = "kernels/triton/"
TRITON_FILES = {
    "common": ["waveform_kernels", "stft_kernels", "triton_backend"],
    "waveform": ["waveform_kernels", "triton_backend"],
    "objective": ["waveform_kernels", "stft_kernels", "triton_backend"],
    "frames": ["stft_kernels", "triton_backend"],
    "spectrum": ["stft_kernels", "triton_backend"],
    "unknown": ["onchip", "stft_kernels"],
    **{
        key: ["onchip"]
        for key in ("stretches", "pairs", "signs", "forward", "level", "backward", "finish")
    },
    "fft": ["fft", "onchip"],
    "complex_stft": ["complex_kernel"],
    "__init__": ["triton_backend", "onchip", "stft_kernels"],
}

OBJECTIVE, STFT = "kernels/eager/objective.py", "kernels/eager/stft.py"
WAVEFORM, EAGER = "kernels/eager/waveform.py", "kernels/eager/__init__.py"
COMPLEX = "kernels/eager/complex_stft.py"
FEW = "kernels/eager/few.py"

# (what is wrong then, file inside the package, text, its replacement)
MUTATIONS = [
    ("gradient of the wrong sign", EAGER, "return total.to(", "return total.neg_().to("),
    ("lambda not detached", OBJECTIVE, "= detached(", "= ("),
    ("lambda not rounded like upstream's", OBJECTIVE, "on.float()", "on.double()"),
    ("lambda of few rows not rounded", OBJECTIVE, "ctypes.c_float(x).value", "x"),
    ("eta ignores lmin", OBJECTIVE, "clamp(l_pred, l_min)", "l_pred"),
    ("no eps in the error", OBJECTIVE, "reference + term.eps)\n", "reference)\n"),
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
        "loss + (snr_share * reg_coef) * level",
        "loss + (weight * reg_coef) * level",
    ),
    (
        "L1 gradient not shared by both parts",
        OBJECTIVE,
        "x + l1_share / count for",
        "x + l1_share for",
    ),
    (
        "imaginary parts get the real parts' coefficient",
        OBJECTIVE,
        "a[0], a[-1], r",
        "a[0], a[0], r",
    ),
    ("overflow hidden in the gradient", OBJECTIVE, "x + 0.0 * error for", "x for"),
    (
        "grad_scale twice",
        OBJECTIVE,
        "plan.grad_scale * share",
        "plan.grad_scale**2 * share",
    ),
    (
        "gradient not divided by the batch",
        OBJECTIVE,
        "plan.grad_scale * share",
        "plan.grad_scale",
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
    ("level gradient halved", STFT, "group].mT, weights", "group].mT / 2, weights"),
    ("frames left over not summed", STFT, "magnitudes[:, whole:, side]", "magnitudes[:, :0, side]"),
    (
        "resolutions with smaller borders framed one off",
        STFT,
        "x[..., pad - res.pad :",
        "x[..., max(pad - res.pad - 1, 0) :",
    ),
    ("later frames added at the start", STFT, "[:, first : first + count]", "[:, :count]"),
    (
        "two-state signs",
        STFT,
        "= torch.sign(error, out=sign)",
        "= 1 - 2 * torch.signbit(error).to(sign)",
    ),
    (
        "window left of the centre",
        "kernels/plan.py",
        "(n_fft - win_length) // 2",
        "(n_fft - win_length + 1) // 2",
    ),
    ("window norm in float32", "kernels/plan.py", "exact = plain.double()", "exact = plain"),
    ("usable one sample too early", "kernels/plan.py", "length > self.pad", "length >= self.pad"),
    ("no hop needed", "kernels/plan.py", " and length >= self.hop_length", ""),
    (
        "mean over one channel",
        "kernels/plan.py",
        "(self.waveform, channels * length)",
        "(self.waveform, length)",
    ),
    (
        "two-state sign in waveforms",
        WAVEFORM,
        "torch.sign(own, out=own)",
        "torch.copysign(torch.ones_like(own), own, out=own)",
    ),
    ("gradient of L2 halved", WAVEFORM, "a = 2 * a", "a = 1 * a"),
    ("level gradient of waveforms missing", WAVEFORM, "if r is not None:", "if False:"),
    ("sums of the first block alone", FEW, "row[column] += value", "row[column] = value"),
    (
        "infinite numbers of few rows",
        FEW,
        "except (ValueError, ZeroDivisionError)",
        "except KeyError",
    ),
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
    ("bad samples not counted", EAGER, "(*sums, count)", "(*sums, 0)"),
    ("coefficients of the first rows for all", EAGER, "tables[-1], shares", "tables[0], shares"),
    ("gradient of the first group alone", EAGER, "range(0, batch, together)", "range(1)"),
    (
        "a gradient that is needed again is written over",
        "autograd.py",
        "_autograd._get_current_graph_task_keep_graph()",
        "False",
    ),
    (
        "what others hold is written over",
        "autograd.py",
        "_default_hooks(True) is None",
        "_default_hooks",
    ),
    ("unread samples not scanned", "kernels/plan.py", " and end >= self.pad + length", ""),
    ("Inf repaired to 0", EAGER, "posinf=1.0", "posinf=0.0"),
    (
        "fallback with reg_coef 1",
        "losses/spectral.py",
        "changed(objective, parts=1, l1_scale=scale)",
        "changed(objective, parts=1, l1_scale=scale, reg_coef=1.0)",
    ),
    (
        "fallback ignores l1_scale",
        "losses/spectral.py",
        "scale_of_l1(self.l1_scale, pure, self.ref_level, eps)",
        "scale_of_l1(None, pure, self.ref_level, eps)",
    ),
    (
        "spectral blend scale of the waveform",
        "losses/spectral.py",
        "eps, parts=2)",
        "eps)",
    ),
    (
        "resolutions summed, not averaged",
        "computation.py",
        "variable(spectrum.objective.weight) / len(usable)",
        "variable(spectrum.objective.weight) / 1",
    ),
    (
        "dropped resolutions still divide",
        "computation.py",
        "variable(spectrum.objective.weight) / len(usable)",
        "variable(spectrum.objective.weight) / len(spectrum.resolutions)",
    ),
    ("warned at every call", "notices.py", "self.given.add(kind)", "pass"),
    (
        "spec_weight on both domains",
        "losses/combined.py",
        "time._objective(weight * (1 - share))",
        "time._objective(weight * share)",
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
        "isinstance(value, numbers.Integral) and not isinstance(value, bool)",
        "isinstance(value, numbers.Integral)",
    ),
    (
        "a default's list is shared",
        "validation.py",
        "        found.append(int(value))\n    return found",
        "        found.append(int(value))\n    return values",
    ),
    (
        "injected module ignored",
        "losses/combined.py",
        "self.time_loss = time_loss_module",
        "self.time_loss = L1SNRDBLoss('x')",
    ),
    (
        "hooks not fired",
        "losses/base.py",
        "module._forward_hooks\n        or module._forward_pre_hooks\n        or ",
        "",
    ),
    (
        "own gradient scale of a part dropped",
        "losses/base.py",
        "and part.grad_scale == 1.0",
        "",
    ),
    (
        "grad_scale of the reference missing",
        "reference.py",
        "scaled = scale_gradient(total, plan.grad_scale)",
        "scaled = total",
    ),
    (
        "second derivative missing",
        "autograd.py",
        "if torch.is_grad_enabled() and not",
        "if False and not",
    ),
    (
        "actuals must not be written",
        "autograd.py",
        "_raw_saved_tensors[: 1 if actuals.is_inference() else 2]",
        "_raw_saved_tensors[:1]",
    ),
    ("second derivative of written memory", "autograd.py", "x._version != version", "False"),
    (
        "second derivative of memory written unseen",
        "autograd.py",
        "if not torch.allclose(again.parts",
        "if False and not torch.allclose(again.parts",
    ),
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
    ("two-state signs in words", TRITON + "common.py", "return (x > 0).to(", "return (x >= 0).to("),
    (
        "negative signs lost",
        TRITON + "common.py",
        "tl.where(code == 2, -a, 0 * a)",
        "tl.where(code == 2, a, 0 * a)",
    ),
    (
        "Inf repaired to 0 in a kernel",
        TRITON + "common.py",
        "(x > 0).to(x.dtype) - (x < 0).to(x.dtype))",
        "0.0)",
    ),
    ("rows counted in 32 bits", TRITON + "common.py", "row.to(tl.int64)", "row"),
    (
        "last chunk longer than the row",
        TRITON + "waveform.py",
        "left = tl.minimum(length - start, PLANES * LANES).to(tl.int32)\n        word",
        "left = PLANES * LANES\n        word",
    ),
    ("bad targets not counted", TRITON + "waveform.py", " + (finite(t) == 0).to(DTYPE)", ""),
    (
        "repaired samples keep their sign",
        TRITON + "waveform.py",
        "code = tl.where(known, code, 0)",
        "code = code",
    ),
    (
        "eta ignores lmin in a kernel",
        TRITON + "objective.py",
        "((l_ref > l_est) & (l_ref > lmin))",
        "(l_ref > l_est)",
    ),
    (
        "pure L1 in spectra not halved",
        TRITON + "objective.py",
        "l1 = (err_re + err_im) / count",
        "l1 = err_re + err_im",
    ),
    ("batch not divided by", TRITON + "objective.py", "share = share / batch", "share = share / 1"),
    (
        "overflow hidden in a kernel's gradient",
        TRITON + "objective.py",
        "snr_share * C / floor_re, 0.0) + 0 * err_re",
        "snr_share * C / floor_re, 0.0)",
    ),
    (
        "rows beyond the batch in the sum",
        TRITON + "objective.py",
        "total += tl.where(live, row_loss, 0.0)",
        "total += row_loss",
    ),
    (
        "left border folded one off",
        TRITON + "frames.py",
        "(start + lane >= 1)",
        "(start + lane >= 2)",
    ),
    ("right border not folded", TRITON + "frames.py", "offset < pad)", "offset < pad - 1)"),
    (
        "bad samples counted in every frame",
        TRITON + "frames.py",
        "tl.where(first_frame + i == frame_count - 1, n, hop)",
        "n + 0 * hop",
    ),
    ("odd frames have a Nyquist bin", TRITON + "frames.py", "even = 1 - n % 2", "even = 1 + 0 * n"),
    ("edge bins halved in a kernel", TRITON + "spectrum.py", "tl.where(edge, 2 * re, re)", "re"),
    (
        "frames of a pair exchanged",
        TRITON + "spectrum.py",
        "z = tl.join(a_re - b_im, b_re + a_im)",
        "z = tl.join(b_re - a_im, a_re + b_im)",
    ),
    (
        "butterfly of the wrong sign",
        TRITON + "onchip/fft.py",
        "yr = 2 * ar - xr",
        "yr = xr - 2 * ar",
    ),
    (
        "twiddles of the next stage",
        TRITON + "onchip/fft.py",
        "p_twiddles + N + k1 * R3",
        "p_twiddles + N + k1 * R2",
    ),
    (
        "border reflected with its edge",
        TRITON + "onchip/stretches.py",
        "last = length - 1\n    return",
        "last = length - 1 + 0 * length\n    p = tl.where(p < 0, p + 1, p)\n    return",
    ),
    (
        "silent frames keep the other's signs",
        TRITON + "onchip/signs.py",
        "if keep != 3:",
        "if keep == 4:",
    ),
    (
        "a frame that does not exist counts",
        TRITON + "onchip/forward.py",
        "there = tl.where(2 * i + 1 < frames, 1.0, 0.0)",
        "there = 1.0",
    ),
    (
        "bins at 0 halved",
        TRITON + "onchip/pairs.py",
        "tl.where(c == 0, 2.0, 0.0)",
        "tl.where(c == 0, 1.0, 0.0)",
    ),
    (
        "dirty stretches not done again",
        TRITON + "onchip/forward.py",
        "todo = ~dirty & ~finite(re + im)",
        "todo = ~dirty & ~finite(re + im) & (first < 0)",
    ),
    (
        "conjugates of the next tensor",
        TRITON + "onchip/signs.py",
        "tl.where(c == 0, further, opposite[h])",
        "tl.where(c >= 0, further, opposite[h])",
    ),
    (
        "gradient of repaired samples",
        TRITON + "unknown.py",
        ">> (p % BITS)) & 1 == 0",
        ">> (p % BITS)) & 1 >= 0",
    ),
    (
        "stretches begin with half their frames",
        TRITON + "onchip/backward.py",
        "begin = tl.maximum(first - N // (2 * HOP), 0)",
        "begin = tl.maximum(first - 1, 0)",
    ),
    (
        "level gradient on chip halved",
        TRITON + "onchip/backward.py",
        "done += (out[j] + r * level,)",
        "done += (out[j] + 0.5 * r * level,)",
    ),
    (
        "waveform term not written",
        TRITON + "onchip/finish.py",
        'return "level" if self.level else "signs"',
        'return "zero"',
    ),
    (
        "inputs not made readable",
        TRITON + "__init__.py",
        "    estimates, actuals = readable(estimates), readable(actuals)\n    dtype",
        "    dtype",
    ),
    (
        "complex: the constant counted once",
        COMPLEX,
        "spectrum[..., 0] *= 2",
        "spectrum[..., 0] *= 1",
    ),
    ("complex: every transform even", COMPLEX, "if n_fft % 2 == 0:", "if n_fft:"),
    (
        "complex: blocks of frames on top of each other",
        COMPLEX,
        "out[:, first + span.start * hop :]",
        "out[:, first:]",
    ),
    ("complex: padding not zero", COMPLEX, "    padded[..., width:] = 0\n", ""),
    ("complex: no gradient of the waveform", COMPLEX, "alpha=scales[0]", "alpha=0.0"),
    (
        "complex: incoming gradient ignored",
        "complex_stft.py",
        "result = scaled(gradient, grad).to(",
        "result = gradient.to(",
    ),
    (
        "complex on chip: the constant counted once",
        TRITON + "complex_stft.py",
        "edge = (c == 0) & ((k == 0) |",
        "edge = (c == 0) & ((k < 0) |",
    ),
    (
        "complex on chip: column 0 as the others",
        TRITON + "complex_stft.py",
        "gr = tl.where(c == 0, re[(R - k) % R], gr)",
        "gr = tl.where(c < 0, re[(R - k) % R], gr)",
    ),
    (
        "complex on chip: a silent frame takes its partner's rounding",
        TRITON + "complex_stft.py",
        "tl.where(b_sounds, scale, 0.0) * y",
        "scale * y",
    ),
    (
        "complex on chip: frames from before the stretch left out",
        TRITON + "complex_stft.py",
        "reach = width",
        "reach = 1",
    ),
    (
        "complex on chip: frames of the next stretch counted",
        TRITON + "complex_stft.py",
        "(second >= begin) & (second < end)",
        "(second >= begin)",
    ),
    (
        "complex on chip: what is held not moved after frame A",
        TRITON + "complex_stft.py",
        "held = _further(held, at, hop)\n                held +=",
        "held +=",
    ),
    (
        "complex on chip: bins of double frames in each other's place",
        TRITON + "complex_stft.py",
        "br, bi = 2 * ar - xr, 2 * ai - xi\n        ar, ai = xr, xi",
        "br, bi = xr, xi\n        ar, ai = 2 * ar - xr, 2 * ai - xi",
    ),
    (
        "complex on chip: an odd sample finished too early",
        TRITON + "complex_stft.py",
        "end, hop - 1, length",
        "end, hop, length",
    ),
]


def copy_of_the_library(folder: Path) -> Path:
    """The package as it is installed: with the kernels inside."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / PACKAGE, folder / PACKAGE, ignore=ignored)
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder / PACKAGE


def tests_of(file: str, quick: list[str]) -> list[str]:
    """The tests that a mistake in a file of the package is to fail."""
    if not file.startswith(TRITON):
        return ["tests/test_complex_stft.py"] if Path(file).stem == "complex_stft" else quick
    return [f"tests/triton_kernels/test_{name}.py" for name in TRITON_FILES[Path(file).stem]]


def run_tests(folder: Path, tests: list[str]) -> tuple[bool, str]:
    """Whether all pass, and the first that did not."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    options = {"cwd": folder, "env": environment, "capture_output": True, "text": True}
    try:
        result = subprocess.run(command, check=False, timeout=LIMIT, **options)
    except subprocess.TimeoutExpired:
        return False, f"a test that takes more than {LIMIT} s"
    found = re.search(r"^(?:FAILED|ERROR) tests/(.*?)(?: - .*)?$", result.stdout, re.MULTILINE)
    return result.returncode == 0, found[1] if found else result.stdout[-2000:]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--without-upstream", action="store_true")
    parser.add_argument("words", nargs="*")
    arguments = parser.parse_args()
    files = FILES if arguments.without_upstream else ["upstream", *FILES]
    quick = [f"tests/test_{name}.py" for name in files]
    chosen = [
        m for m in MUTATIONS if not arguments.words or any(w in m[0] for w in arguments.words)
    ]
    missed = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        package = copy_of_the_library(folder)
        check = f"import {PACKAGE} as p; assert p.__file__.startswith({str(folder)!r}), p.__file__"
        subprocess.run([sys.executable, "-c", check], cwd=folder, check=True)
        passed, first = run_tests(
            folder, sorted({x for m in chosen for x in tests_of(m[1], quick)})
        )
        if not passed:
            print(f"the unbroken library fails {first}")
            return 1
        for title, file, old, new in chosen:
            path = package / file
            text = path.read_text()
            if text.count(old) != 1:
                missed += 1
                print(f"STALE    {title}: {text.count(old)} times in {file}: {old!r}", flush=True)
                continue
            path.write_text(text.replace(old, new))
            passed, first = run_tests(folder, tests_of(file, quick))
            path.write_text(text)
            missed += passed
            print(f"{'MISSED  ' if passed else 'noticed '} {title}: {first}"[:160], flush=True)
    print(f"{missed} missed or stale")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
