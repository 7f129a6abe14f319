"""Speech of VCTK, TIMIT and any folder: an utterance is a terminated episode whose frames are windows of its wave.

Every action of an episode and its condition are the speaker, so ``action_names`` of the Spec are the speakers.

TIMIT has alignments of 61 phones. K.-F. Lee and H.-W. Hon (Speaker-independent phone recognition using hidden Markov
models, IEEE Transactions on Acoustics, Speech, and Signal Processing 37, 1989) fold them to 39 phonemes: allophones are
merged, closures and pauses are silence, and the glottal stop q is ignored.
"""

from __future__ import annotations

import dataclasses
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
from annotated_types import Ge, Le

from worldmodel.data.records import HELD_OUT_EVERY, Item
from worldmodel.data.sources.base import Source, check_folder, files_below, some_for_training
from worldmodel.errors import MOST_NAMES, DataError
from worldmodel.speech.sound import LOUDNESS, RATE, SUFFIXES, WINDOW, normalise, read_sound, to_frames, trim
from worldmodel.types import Episode, Spec, plain_name
from worldmodel.util.files import expanded
from worldmodel.util.ranges import Names, Text

WindowLength = Annotated[int, Ge(1), Le(2**20)]
SampleRate = Annotated[int, Ge(1), Le(768_000)]
Loudness = Annotated[float, Ge(-60), Le(0)]
VCTK_FOLDERS = ("wav48_silence_trimmed", "wav48")  # of 0.92 and of 0.80
VCTK_FILE = re.compile(r"(?P<key>[a-z]+\d+_(?P<sentence>\d+))(?:_(?P<mic>mic\d))?\.(?:wav|flac)", re.IGNORECASE)
HELD_OUT_DIGITS = "38"  # of VCTK

TIMIT_SPEAKER = re.compile(r"(?:dr\d-)?(?P<speaker>[fm][a-z]{3}\d)", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Utterance:
    """One recording of a corpus."""

    file: Path
    speaker: str
    held_out: bool
    key: str


class Speech(Source):
    """Reads the utterances that a corpus lists, in their order.

    A frame has ``window`` samples at ``rate`` samples a second; other files are resampled. ``loudness``: of the active
    part of every utterance, dBFS RMS (see :mod:`worldmodel.speech.sound`); None keeps the original loudness.
    """

    def __init__(
        self, name: str, utterances: Sequence[Utterance], window: int, rate: int, loudness: float | None, trimmed: bool
    ):
        held_out = some_for_training([utterance.held_out for utterance in utterances])
        self.utterances = [
            dataclasses.replace(utterance, held_out=own) for utterance, own in zip(utterances, held_out, strict=True)
        ]
        speakers = tuple(sorted({utterance.speaker for utterance in utterances}))
        self.keys = [utterance.key for utterance in utterances]
        self.spec = Spec(name, (1, window), speakers, rate / window)
        self._window, self._rate, self._loudness, self._trimmed = window, rate, loudness, trimmed

    def read(self, index: int) -> Item:
        utterance = self.utterances[index]
        wave = read_sound(utterance.file, self._rate)
        sound = trim(wave, self._rate)
        if not len(sound):
            raise DataError(f"{utterance.file} is silent; remove it or restore it")
        wave = sound if self._trimmed else wave
        if self._loudness is not None:
            wave = normalise(wave, self._rate, self._loudness)
        frames = to_frames(wave, self._window)
        if not len(frames):
            raise DataError(f"{utterance.file} holds {len(wave):,} samples of sound, less than half a window")
        speaker = self.spec.action_names.index(utterance.speaker)
        actions, rewards = np.full(len(frames), speaker, np.int64), np.zeros(len(frames), np.float32)
        episode = Episode(frames, actions, rewards, terminated=True, truncated=False)
        return Item(episode, utterance.held_out, utterance.key)


class VCTK(Speech):
    """VCTK as published: ``wav48/p225/p225_001.wav`` (0.80) or ``wav48_silence_trimmed/p225/p225_001_mic1.flac`` (0.92,
    of which one ``mic`` is read). Silence at both ends is cut off.

    ``speakers``: by default all that have recordings, including p315, which has no texts. A key is p225_001, or
    p225_001_mic2 for the second microphone. **Held out** are the sentences of every speaker whose number ends in 3 or
    8: a fifth, including 023, which all speakers read.

    Raises :class:`DataError` for a folder without recordings and for an unknown speaker.
    """

    def __init__(
        self,
        path: Text,
        window: WindowLength = WINDOW,
        rate: SampleRate = RATE,
        loudness: Loudness | None = LOUDNESS,
        speakers: Names | None = None,
        mic: Literal["mic1", "mic2"] = "mic1",
        name: Text = "vctk",
    ):
        folder = check_folder(path, f"the folder of VCTK, which holds {' or '.join(VCTK_FOLDERS)}")
        folder = next((below for own in VCTK_FOLDERS if (below := folder / own).is_dir()), folder)
        recordings = _vctk(folder, mic)
        if not recordings:
            raise DataError(
                f"there is no recording p225/p225_001_{mic}.flac or p225/p225_001.wav in {folder}; source.path=… names "
                f"the folder of VCTK, which holds {' or '.join(VCTK_FOLDERS)}"
            )
        known = sorted({utterance.speaker for utterance in recordings})
        for speaker in speakers or ():
            if speaker not in known:
                more = f" and {len(known) - MOST_NAMES:,} more" if len(known) > MOST_NAMES else ""
                raise DataError(f"unknown speaker {speaker!r}; {folder} has {', '.join(known[:MOST_NAMES])}{more}")
        chosen = [utterance for utterance in recordings if not speakers or utterance.speaker in speakers]
        super().__init__(name, chosen, window, rate, loudness, trimmed=True)


def _vctk(folder: Path, mic: str) -> list[Utterance]:
    """The recordings in the folders of the speakers, sorted, one per key."""
    recordings: dict[str, Utterance] = {}
    for own in sorted(path for path in folder.iterdir() if path.is_dir()):
        for file in sorted(own.iterdir()):
            match = VCTK_FILE.fullmatch(file.name)
            if match is None or (match["mic"] or mic).lower() != mic.lower():
                continue
            key = match["key"] if mic == "mic1" or not match["mic"] else f"{match['key']}_{mic}"
            held_out = match["sentence"][-1] in HELD_OUT_DIGITS
            recordings.setdefault(key, Utterance(file, own.name, held_out, key))
    return list(recordings.values())


class TIMIT(Speech):
    """TIMIT as published, ``TRAIN/DR1/FCJF0/SA1.WAV`` (NIST SPHERE) in upper or lower case, or in folders such as
    ``dr1-fvmh0/sa1.flac``. Silence is kept, so that the alignments fit: by default, frame t is samples
    [640 t, 640 (t + 1)). See :func:`frame_phones`.

    A speaker is named fvmh0 and a key fvmh0/sa1. **Held out** is every second speaker of each sex (the first letter) in
    sorted order, independent of TRAIN and TEST. Speakers of the splits are disjoint, sentences are not: all read sa1
    and sa2, and seven speakers read each sx sentence.

    Raises :class:`DataError` for a folder without recordings.
    """

    def __init__(
        self,
        path: Text,
        window: WindowLength = WINDOW,
        rate: SampleRate = RATE,
        loudness: Loudness | None = LOUDNESS,
        name: Text = "timit",
    ):
        folder = check_folder(path, "the folder of TIMIT, which holds TRAIN/DR1/FCJF0/SA1.WAV or dr1-fvmh0/sa1.flac")
        files = timit_files(folder, SUFFIXES)
        if not files:
            raise DataError(
                f"there is no recording DR1/FCJF0/SA1.WAV or dr1-fvmh0/sa1.flac below {folder}; source.path=… names "
                f"the folder of TIMIT"
            )
        speaker_of = {key: key.partition("/")[0] for key in files}
        speakers = sorted(set(speaker_of.values()))
        held_out = {speaker for sex in "fm" for speaker in [own for own in speakers if own[0] == sex][1::2]}
        utterances = [Utterance(file, speaker_of[key], speaker_of[key] in held_out, key) for key, file in files.items()]
        super().__init__(name, utterances, window, rate, loudness, trimmed=False)


class SpeechFolder(Speech):
    """Any WAV and FLAC files, in one folder per speaker: ``anna/morning/001.wav`` is of the speaker anna. Files beside
    the folders are of one speaker, who has the name of the folder. Silence at both ends is cut off.

    A key is anna/morning/001. **Held out** is about a tenth of the ``utterances``, or of the ``speakers`` with all of
    theirs, chosen by a checksum of the names, so that the choice is the same when the folder has grown.

    Raises :class:`DataError` for a folder without recordings.
    """

    def __init__(
        self,
        path: Text,
        window: WindowLength = WINDOW,
        rate: SampleRate = RATE,
        loudness: Loudness | None = LOUDNESS,
        held_out: Literal["utterances", "speakers"] = "utterances",
        name: Text = "speech",
    ):
        folder = check_folder(path, "a folder that holds the folders of the speakers")
        recordings: dict[str, Utterance] = {}
        for file in sorted(files_below(folder, SUFFIXES)):
            parts = file.relative_to(folder).with_suffix("").parts
            speaker = plain_name(parts[0] if len(parts) > 1 else folder.name) or "unnamed"
            recordings.setdefault("/".join(parts), Utterance(file, speaker, False, "/".join(parts)))
        if not recordings:
            raise DataError(f"there is no recording below {folder}; known are {', '.join(SUFFIXES)}")
        whole = held_out == "speakers"
        chosen = _a_tenth([each.speaker if whole else key for key, each in recordings.items()])
        utterances = [
            dataclasses.replace(each, held_out=(each.speaker if whole else key) in chosen)
            for key, each in recordings.items()
        ]
        super().__init__(name, utterances, window, rate, loudness, trimmed=True)


def _a_tenth(names: Sequence[str]) -> set[str]:
    """The names whose checksum is divisible by ten; the one of the lowest checksum, if there is no other."""
    sums = {name: zlib.crc32(name.encode()) for name in names}
    return {name for name, own in sums.items() if own % HELD_OUT_EVERY == 0} or {min(sums, key=sums.__getitem__)}


def timit_files(folder: str | Path, suffixes: Sequence[str]) -> dict[str, Path]:
    """Files with one of the lower-case suffixes below a folder of TIMIT by key, sorted: fcjf0/sa1 →
    TRAIN/DR1/FCJF0/SA1.WAV. Of several with one key (SA1.WAV, SA1.WAV.wav), the first one."""
    recordings: dict[str, Path] = {}
    for file in sorted(files_below(folder, tuple(suffixes))):
        speaker = TIMIT_SPEAKER.fullmatch(file.parent.name)
        if speaker:
            recordings.setdefault(f"{speaker['speaker']}/{file.name.partition('.')[0]}".lower(), file)
    return dict(sorted(recordings.items()))


SILENT = "sil"
NO_PHONE = -1
"""Label of a window without a phoneme: after the last alignment, or mostly a glottal stop."""

_ALIKE = {
    "aa": "aa ao", "ah": "ah ax ax-h", "er": "er axr", "hh": "hh hv", "ih": "ih ix", "l": "l el", "m": "m em",
    "n": "n en nx", "ng": "ng eng", "sh": "sh zh", "uw": "uw ux",
    SILENT: "h# # pau epi pcl tcl kcl bcl dcl gcl",
}  # fmt: skip
_ALONE = "ae aw ay b ch d dh dx eh ey f g iy jh k ow oy p r s t th uh v w y z"
FOLDING: dict[str, str | None] = {phone: name for name, phones in _ALIKE.items() for phone in phones.split()}
FOLDING |= {phone: phone for phone in _ALONE.split()} | {"q": None}
"""Phones of TIMIT → phonemes; None for one that is ignored."""

PHONEMES = tuple(sorted({name for name in FOLDING.values() if name is not None}))


class Phones(NamedTuple):
    """The alignment of a recording: S consecutive phones."""

    starts: np.ndarray  # (S,) int64, samples of the recording at its own rate
    ends: np.ndarray  # (S,) int64, exclusive
    phones: tuple[str, ...]  # (S,) of the 61 of TIMIT


def phoneme_index(phone: str) -> int:
    """The index of a phone's phoneme in :data:`PHONEMES`, or :data:`NO_PHONE`. Raises :class:`DataError` for an unknown
    phone."""
    if phone not in FOLDING:
        raise DataError(f"unknown phone {phone!r}; TIMIT has {', '.join(sorted(FOLDING))}")
    name = FOLDING[phone]
    return NO_PHONE if name is None else PHONEMES.index(name)


def read_phones(path: str | Path) -> Phones:
    """Read an alignment ``.phn`` with a line ``start end phone`` per phone, in samples. Raises :class:`DataError` for
    another file."""
    rows = []
    try:
        for line in Path(path).read_text(encoding="ascii").splitlines():
            if line.strip():
                start, end, phone = line.split()
                rows.append((int(start), int(end), phone.lower()))
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); it lies beside the recording in TIMIT") from error
    except ValueError as error:
        raise DataError(f"{path} is no alignment; its lines should be: start end phone") from error
    if not rows or any(not 0 <= start <= end for start, end, _ in rows):
        raise DataError(f"{path} holds {'no phone' if not rows else 'a phone that ends before it starts'}")
    starts, ends, phones = zip(*rows, strict=True)
    return Phones(np.array(starts, np.int64), np.array(ends, np.int64), phones)


def frame_phones(aligned: Phones, windows: int, hop: int = 640) -> np.ndarray:
    """The phoneme that overlaps each window most: (windows,) int64, indices in :data:`PHONEMES`.

    Window t is samples [hop t, hop (t + 1)) of the alignment, at 16,000 a second also for resampled sound. Parts of one
    phoneme in a window count together; the first one wins a tie. :data:`NO_PHONE` without an overlap, or when most of
    the window is a glottal stop.
    """
    firsts = hop * np.arange(windows)[:, None]  # (windows, 1)
    overlaps = np.minimum(aligned.ends, firsts + hop) - np.maximum(aligned.starts, firsts)
    overlaps = np.maximum(overlaps, 0)  # (windows, S)
    own = np.array([phoneme_index(phone) for phone in aligned.phones])
    same = own[:, None] == own[None]  # (S, S)
    totals = overlaps @ same * (overlaps > 0)  # of all parts of the phoneme, at each part
    best = totals.argmax(1)
    return np.where(totals.max(1) > 0, own[best], NO_PHONE)


def phone_files(folder: str | Path) -> dict[str, Path]:
    """All alignments below a folder of TIMIT by the keys of their recordings."""
    return timit_files(expanded(folder), (".phn",))
