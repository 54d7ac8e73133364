"""Mistakes in Triton's kernels: what is wrong then, file, text, its replacement."""

from pathlib import Path

TRITON = "kernels/triton/"
# The tests that see a file's mistakes first.
FILES = {
    "common": ["waveform_kernels", "stft_kernels", "triton_backend"],
    "waveform": ["waveform_kernels", "triton_backend"],
    "objective": ["waveform_kernels", "stft_kernels", "triton_backend"],
    "frames": ["stft_kernels", "triton_backend"],
    "spectrum": ["stft_kernels", "triton_backend"],
    "offchip": ["launching", "stft_kernels"],
    "unknown": ["onchip", "stft_kernels"],
    **{
        key: ["onchip"]
        for key in (
            "stretches",
            "samples",
            "pairs",
            "signs",
            "forward",
            "level",
            "backward",
            "finish",
        )
    },
    "fft": ["fft", "onchip"],
    **{key: ["complex_kernel"] for key in ("directions", "walk")},
    "launching": ["launching"],
    **{key: ["launching", "complex_kernel"] for key in ("complex_stft", "difference")},
    "triton": ["triton_backend", "onchip", "stft_kernels"],
}


def tests_of(file: str) -> list[str]:
    """The tests that a mistake in a file is to fail."""
    path = Path(file)
    return FILES[path.parent.name if path.stem == "__init__" else path.stem]


MUTATIONS = [
    (
        "a launch of the first waveforms' strides",
        TRITON + "launching.py",
        "estimates.stride(), actuals.stride(), dtype",
        "estimates.stride(), estimates.stride(), dtype",
    ),
    (
        "differences of the first waveforms' strides",
        TRITON + "complex_stft/difference.py",
        "waves(estimates, actuals)",
        "waves(estimates, estimates)",
    ),
    (
        "launches of complex spectra for a gradient though none is wanted",
        TRITON + "complex_stft/__init__.py",
        "in _works(plan, shape, device, save)",
        "in _works(plan, shape, device, True)",
    ),
    (
        "by torch.fft: the first slab's launch for all",
        TRITON + "offchip.py",
        "frame(given, res, slab, term",
        "frame(given, res, todo[0], term",
    ),
    (
        "by torch.fft: signs of every slab in the first's place",
        TRITON + "offchip.py",
        "word = slab.first_frame * 2",
        "word = 0 * 2",
    ),
    (
        "by torch.fft: sums of every slab in the first's place",
        TRITON + "offchip.py",
        "row = slab.first_frame // span",
        "row = 0",
    ),
    (
        "by torch.fft: frames added in the first slab's place",
        TRITON + "offchip.py",
        "overlap_add(given, res, slab, level",
        "overlap_add(given, res, slab._replace(first_signal=0), level",
    ),
    (
        "samples repaired without telling where a signal's words are",
        TRITON + "frames.py",
        "words=unknown_words(length)",
        "words=0",
    ),
    (
        "a launch of the first sizes",
        TRITON + "launching.py",
        "return make(config(), *key)",
        "return make(None, *key)",
    ),
    (
        "a kernel compiled for another dtype",
        TRITON + "launching.py",
        "return x.dtype, x.data_ptr() % 16 == 0",
        "return x.data_ptr() % 16 == 0",
    ),
    (
        "a kernel compiled for other alignment",
        TRITON + "launching.py",
        "return x.dtype, x.data_ptr() % 16 == 0",
        "return x.dtype",
    ),
    (
        "a kernel compiled for other tensors of a tuple",
        TRITON + "launching.py",
        "return tuple(map(_compiled_for, x))",
        "return len(x)",
    ),
    (
        "a kernel of another device",
        TRITON + "launching.py",
        "key = (device, *map",
        "key = (None, *map",
    ),
    (
        "hooks not told of a launch",
        TRITON + "launching.py",
        "if not _only_launches(active) or",
        "if",
    ),
    (
        "a launch of one program when it is repeated",
        TRITON + "launching.py",
        "self.programs, 1, 1, stream, compiled",
        "1, 1, 1, stream, compiled",
    ),
    ("two-state signs in words", TRITON + "common.py", "return (x > 0).to(", "return (x >= 0).to("),
    (
        "negative signs lost",
        TRITON + "common.py",
        "tl.where(code & 2 != 0, -a, 0 * a)",
        "tl.where(code & 2 != 0, a, 0 * a)",
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
        TRITON + "fft.py",
        "yr = 2 * ar - xr",
        "yr = xr - 2 * ar",
    ),
    (
        "twiddles of the next stage",
        TRITON + "fft.py",
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
        "samples loaded ahead of the same pair again",
        TRITON + "onchip/forward.py",
        "following = read(waves, i + 1, length",
        "following = read(waves, i, length",
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
        TRITON + "__init__.py",
        'kind = "level" if plan.waveform.has_level else "signs"',
        'kind = "zero"',
    ),
    (
        "inputs not made readable",
        TRITON + "__init__.py",
        "    estimates, actuals = readable(estimates), readable(actuals)\n    given",
        "    given",
    ),
    (
        "complex on chip: the constant counted once",
        TRITON + "complex_stft/directions.py",
        "edge = (c == 0) & ((k == 0) |",
        "edge = (c == 0) & ((k < 0) |",
    ),
    (
        "complex on chip: column 0 as the others",
        TRITON + "complex_stft/directions.py",
        "gr = tl.where(c == 0, re[(R - k) % R], gr)",
        "gr = tl.where(c < 0, re[(R - k) % R], gr)",
    ),
    (
        "complex on chip: a silent frame takes its partner's rounding",
        TRITON + "complex_stft/walk.py",
        "tl.where(b_sounds, scale, 0.0) * y",
        "scale * y",
    ),
    (
        "complex on chip: frames from before the stretch left out",
        TRITON + "complex_stft/walk.py",
        "reach = width",
        "reach = 1",
    ),
    (
        "complex on chip: frames of the next stretch counted",
        TRITON + "complex_stft/walk.py",
        "(second >= begin) & (second < end)",
        "(second >= begin)",
    ),
    (
        "complex on chip: what is held not moved",
        TRITON + "complex_stft/walk.py",
        "return _further(held, at, hop)",
        "return held",
    ),
    (
        "complex on chip: bins of double frames in each other's place",
        TRITON + "complex_stft/directions.py",
        "br, bi = 2 * ar - xr, 2 * ai - xi\n        ar, ai = xr, xi",
        "br, bi = xr, xi\n        ar, ai = 2 * ar - xr, 2 * ai - xi",
    ),
    (
        "complex on chip: an odd sample finished too early",
        TRITON + "complex_stft/walk.py",
        "start + 1, hop - 1,",
        "start + 1, hop,",
    ),
]
