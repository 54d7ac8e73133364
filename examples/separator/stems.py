"""Where mixtures come from: folders of recordings, or stems synthesised on the spot."""

from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Protocol

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from torchaudio.functional import resample

from .config import Config, InputError

Audio = NDArray[np.floating]  # (channels, samples), or (samples,) while it is made
Rng = np.random.Generator

LEVEL = 0.1  # RMS of a stem before its random gain, -20 dB full scale
GAIN_DB = 4.0  # largest random gain, up or down
TRAIN, HELD_OUT = 0, 1  # the two streams of mixtures, which share nothing


class Stems(Protocol):
    """A source of clips, one per stem, that the random generator alone decides."""

    names: tuple[str, ...]

    def clips(self, rng: Rng, samples: int) -> list[Audio]: ...


class Mixtures(Dataset[Tensor]):
    """Stems (sources, channels, samples) to mix, decided by (seed, stream, index) alone.

    As an index always means the same mixture, resuming is to go on counting, and ranks share the
    work by taking every n-th index: no state of a random generator has to be kept.
    """

    def __init__(self, stems: Stems, seed: int, stream: int, samples: int) -> None:
        self.stems, self.seed, self.stream, self.samples = stems, seed, stream, samples

    def __getitem__(self, index: int) -> Tensor:
        rng = np.random.default_rng((self.seed, self.stream, index))
        clips = np.stack(self.stems.clips(rng, self.samples))
        gains_db = rng.uniform(-GAIN_DB, GAIN_DB, size=(len(clips), 1, 1))
        return torch.from_numpy(clips * (10 ** (gains_db / 20)).astype(np.float32))


def open_stems(config: Config) -> dict[int, Stems]:
    """Make the stems that `config` asks for, for either stream."""
    if config.stems is None:
        return dict.fromkeys(
            (TRAIN, HELD_OUT), SynthesisedStems(config.sample_rate, config.channels)
        )
    recordings = {}
    for name, paths in find_files(config.stems, config.patterns).items():
        # Shuffled, lest the alphabet decide what is held out.
        order = np.random.default_rng(config.seed).permutation(len(paths))
        audio = [read_audio(paths[index], config) for index in order]
        recordings[name] = np.concatenate(audio, axis=1)
    return {stream: RecordedStems(recordings, stream) for stream in (TRAIN, HELD_OUT)}


# --- Recordings -----------------------------------------------------------------------------------


class RecordedStems:
    """Random windows of recordings, of which the last fifth is held out.

    All files of a stem follow one another in one long recording. This serves whole songs and
    one-shots of half a second alike, at the price of holding the audio in memory.
    """

    def __init__(self, recordings: dict[str, Audio], stream: int) -> None:
        self.names = tuple(recordings)
        self.recordings = []
        for audio in recordings.values():
            split = audio.shape[1] * 4 // 5
            part = audio[:, :split] if stream == TRAIN else audio[:, split:]
            self.recordings.append(_at_level(part))

    def clips(self, rng: Rng, samples: int) -> list[Audio]:
        return [self._window(audio, rng, samples) for audio in self.recordings]

    @staticmethod
    def _window(audio: Audio, rng: Rng, samples: int) -> Audio:
        start = rng.integers(audio.shape[1])
        return audio.take(np.arange(start, start + samples), axis=1, mode="wrap")


def find_files(folder: Path, patterns: Sequence[str]) -> dict[str, list[Path]]:
    """List the audio files of each stem, by subfolder or by file-name patterns."""
    if not folder.is_dir():
        raise InputError(f"--stems is {str(folder)!r}, which is not a folder: give a folder")
    suffixes = {f".{name.lower()}" for name in soundfile.available_formats()} | {".aif", ".oga"}
    audio = sorted(path for path in folder.rglob("*") if path.suffix.lower() in suffixes)

    files = _by_pattern(folder, audio, patterns) if patterns else _by_subfolder(folder, audio)
    if len(files) < 2:
        raise InputError(
            f"--stems is {str(folder)!r}, which gives {len(files)} stem(s) where two or more are "
            "needed to mix: make one subfolder per stem, or choose files with --patterns"
        )
    return files


def _by_subfolder(folder: Path, audio: list[Path]) -> dict[str, list[Path]]:
    files = {}
    for subfolder in sorted(path for path in folder.iterdir() if path.is_dir()):
        files[subfolder.name] = [path for path in audio if subfolder in path.parents]
        if not files[subfolder.name]:
            raise InputError(
                f"--stems is {str(folder)!r}, whose subfolder {subfolder.name!r} has no audio "
                "files: fill it, remove it, or choose files with --patterns"
            )
    return files


def _by_pattern(folder: Path, audio: list[Path], patterns: Sequence[str]) -> dict[str, list[Path]]:
    files: dict[str, list[Path]] = {}
    for pattern in patterns:
        name, _, globs = pattern.partition("=")
        if not (name and globs):
            raise InputError(
                f"--patterns has {pattern!r}: write it as STEM=GLOB[,GLOB], like bass='bass_*'"
            )
        matches = [p for p in audio if any(fnmatch(p.name, glob) for glob in globs.split(","))]
        if not matches:
            raise InputError(
                f"--patterns has {pattern!r}, which matches none of the {len(audio)} audio "
                f"files under {str(folder)!r}: check the pattern against their names"
            )
        for other, taken in files.items():
            if shared := set(matches) & set(taken):
                raise InputError(
                    f"--patterns has {pattern!r}, which takes {min(shared).name!r} that is in "
                    f"{other!r} already: narrow one of the two, as a stem mixes with the others"
                )
        files[name] = matches
    return files


def read_audio(path: Path, config: Config) -> Audio:
    """Read a file at the rate and with the channels that `config` asks for."""
    try:
        frames, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError) as error:
        raise InputError(
            f"--stems has {str(path)!r}, which cannot be read ({error}): "
            "remove it, or export it again as WAV or FLAC"
        ) from error
    if len(frames) < rate // 100:
        raise InputError(
            f"--stems has {str(path)!r}, which holds less than 10 ms of audio: remove it"
        )
    audio = torch.from_numpy(frames.T.copy())
    if config.channels == 1 or len(audio) > 2:
        audio = audio.mean(dim=0, keepdim=True)
    audio = resample(audio, rate, config.sample_rate)
    return audio.expand(config.channels, -1).numpy()


# --- Synthesis ------------------------------------------------------------------------------------


class SynthesisedStems:
    """A bass line, a drum beat and a pad of chords, new in every mixture."""

    names: tuple[str, ...] = ("bass", "drums", "pad")

    def __init__(self, sample_rate: int, channels: int) -> None:
        self.rate, self.channels = sample_rate, channels

    def clips(self, rng: Rng, samples: int) -> list[Audio]:
        beat = 60 / rng.uniform(80, 150)  # seconds; the stems of a mixture share it
        start = rng.uniform(0, 4 * beat)
        time = start + np.arange(samples) / self.rate
        root = rng.uniform(40, 75)  # Hz
        parts = (
            self._bass(rng, time, beat, root),
            self._drums(rng, time, beat),
            self._pad(rng, time, beat, root),
        )
        return [_at_level(part.astype(np.float32)) for part in parts]

    def _bass(self, rng: Rng, time: Audio, beat: float, root: float) -> Audio:
        """A plucked line that changes its note every half or whole beat."""
        length = beat * rng.choice([0.5, 1.0])
        note, since = np.divmod(time, length)
        scale = 2 ** (np.array([0, 0, 3, 5, 7, 10, 12]) / 12)
        pitch = root * rng.choice(scale, size=int(note[-1]) + 1)[note.astype(int)]
        envelope = _pluck(since, attack=0.005, decay=length * rng.uniform(0.3, 1.0))
        amplitudes = np.arange(1, 13) ** -rng.uniform(1.2, 2.2)
        return self._pan(envelope * self._tone(pitch, amplitudes), 0.0)

    def _drums(self, rng: Rng, time: Audio, beat: float) -> Audio:
        """Kick, snare and hi-hat on a random grid of sixteenths."""

        def hits(chance: float, on: Sequence[int] = ()) -> Audio:
            """Seconds since the drum was last hit, on a pattern of one bar."""
            pattern = rng.random(16) < chance
            pattern[list(on)] = True
            step, since = np.divmod(time, beat / 4)
            slots = np.arange(-16, int(step[-1]) + 1)
            last = np.maximum.accumulate(np.where(pattern[slots % 16], slots, -16))
            return (step - last[step.astype(int) + 16]) * beat / 4 + since

        since = hits(0.1, on=(0, 8))
        sweep, floor = rng.uniform(15, 30), rng.uniform(40, 55)
        cycles = floor * since + sweep / 5 * (1 - np.exp(-30 * since))
        kick = np.sin(2 * np.pi * cycles) * _pluck(since, 0.001, rng.uniform(0.08, 0.2))

        since = hits(0.08, on=(4, 12))
        noise = rng.standard_normal((3, len(time)), dtype=np.float32)
        rattle = np.sin(2 * np.pi * rng.uniform(160, 240) * since) + noise[0]
        snare = rattle * _pluck(since, 0.001, rng.uniform(0.04, 0.12))

        hiss = np.diff(noise[1:], n=2, prepend=0.0, append=0.0)[:, : len(time)]
        hat = hiss * _pluck(hits(0.5), 0.001, rng.uniform(0.01, 0.05)) * rng.uniform(0.05, 0.2)
        return self._pan(kick + 0.4 * snare, 0.0) + hat[: self.channels]

    def _pad(self, rng: Rng, time: Audio, beat: float, root: float) -> Audio:
        """Sustained chords with vibrato, sung on a random vowel."""
        bar, since = np.divmod(time, 2 * beat)
        swell = np.minimum(since / 0.15, 1) * np.minimum((2 * beat - since) / 0.1, 1)
        formants = np.array([rng.uniform(300, 800), rng.uniform(900, 2200), 2800.0])
        chords = 4 * root * 2 ** (rng.choice([0, 3, 5, 7], size=int(bar[-1]) + 1) / 12)
        sung = np.zeros((self.channels, len(time)))
        for interval in (0, rng.choice([3, 4]), 7):
            pitch = chords * 2 ** (interval / 12)
            harmonics = np.arange(1, 13)[:, None] * pitch
            vowel = np.exp(-(((harmonics[..., None] - formants) / 250) ** 2)).sum(-1) + 0.05
            vibrato = 1 + 0.006 * np.sin(2 * np.pi * (rng.uniform(4, 6) * time + rng.random()))
            voice = self._tone(pitch[bar.astype(int)] * vibrato, vowel[:, bar.astype(int)])
            sung += self._pan(voice * swell, rng.uniform(-0.8, 0.8))
        return sung

    def _tone(self, pitch: Audio, amplitudes: Audio) -> Audio:
        """Sum harmonics of a varying pitch, leaving out those that would alias."""
        # Whole cycles are dropped in float64, as float32 is fast but short of digits.
        phase = (2 * np.pi * (np.cumsum(pitch / self.rate) % 1)).astype(np.float32)
        tone = np.zeros_like(phase)
        for harmonic, amplitude in enumerate(amplitudes.astype(np.float32), start=1):
            audible = harmonic * pitch < 0.45 * self.rate
            tone += amplitude * audible * np.sin(np.float32(harmonic) * phase)
        return tone

    def _pan(self, mono: Audio, position: float) -> Audio:
        """Place a sound between left (-1) and right (1), at equal power."""
        angle = (position + 1) * np.pi / 4
        gains = np.array([np.cos(angle), np.sin(angle)]) if self.channels == 2 else np.ones(1)
        return gains[:, None] * mono


def _pluck(since: Audio, attack: float, decay: float) -> Audio:
    """The envelope of a struck sound, `since` seconds after it was struck."""
    return np.minimum(since / attack, 1) * np.exp(-since / decay)


def _at_level(audio: Audio) -> Audio:
    """Scale to the common level; digital silence stays silent."""
    return audio * np.float32(LEVEL / max(float(np.sqrt(np.mean(audio**2))), 1e-5))
