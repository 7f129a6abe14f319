"""Phones of TIMIT: reading of alignments, and mapping to one of 39 phonemes per window.

TIMIT has 61 phones. K.-F. Lee and H.-W. Hon (Speaker-independent phone recognition using hidden Markov models, IEEE
Transactions on Acoustics, Speech, and Signal Processing 37, 1989) fold them to 39: allophones are merged, closures and
pauses are silence, and the glottal stop q is ignored.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from worldmodel.errors import DataError
from worldmodel.speech.sources.corpora import timit_files

SILENCE = "sil"
NO_PHONE = -1
"""Label of a window without a phoneme: after the last alignment, or mostly a glottal stop."""

_ALIKE = {
    "aa": "aa ao", "ah": "ah ax ax-h", "er": "er axr", "hh": "hh hv", "ih": "ih ix", "l": "l el", "m": "m em",
    "n": "n en nx", "ng": "ng eng", "sh": "sh zh", "uw": "uw ux",
    SILENCE: "h# # pau epi pcl tcl kcl bcl dcl gcl",
}  # fmt: skip
_ALONE = "ae aw ay b ch d dh dx eh ey f g iy jh k ow oy p r s t th uh v w y z"
_NONE = ("q",)


class Phones(NamedTuple):
    """The alignment of a recording: S consecutive phones."""

    starts: np.ndarray  # (S,) int64, samples of the recording at its own rate
    ends: np.ndarray  # (S,) int64, exclusive
    phones: tuple[str, ...]  # (S,) of the 61 of TIMIT


@dataclasses.dataclass(frozen=True)
class PhoneSet:
    """A set of phonemes, and the mapping of the phones of TIMIT to it."""

    names: tuple[str, ...]  # sorted
    folding: Mapping[str, str | None]  # phone → name, or None if it is ignored

    def index(self, phone: str) -> int:
        """The index of a phone's phoneme in ``names``, or :data:`NO_PHONE`. Raises :class:`DataError` for an unknown
        phone.
        """
        if phone not in self.folding:
            raise DataError(f"unknown phone {phone!r}; TIMIT has {', '.join(sorted(self.folding))}")
        name = self.folding[phone]
        return NO_PHONE if name is None else self.names.index(name)


_FOLDING = {phone: name for name, phones in _ALIKE.items() for phone in phones.split()}
_FOLDING |= {phone: phone for phone in _ALONE.split()}
PHONES39 = PhoneSet(tuple(sorted(set(_FOLDING.values()))), {**_FOLDING, **dict.fromkeys(_NONE)})


def read_phones(path: str | Path) -> Phones:
    """Read an alignment ``.phn`` with a line ``start end phone`` per phone, in samples. Raises :class:`DataError` for
    another file.
    """
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


def frame_phones(aligned: Phones, windows: int, hop: int = 640, phone_set: PhoneSet = PHONES39) -> np.ndarray:
    """The phoneme that overlaps each window most: (windows,) int64, indices in ``phone_set.names``.

    Window t is samples [hop t, hop (t + 1)) of the alignment, at 16,000 a second also for resampled sound. Parts of one
    phoneme in a window count together; the first one wins a tie. :data:`NO_PHONE` without an overlap, or when most of
    the window is a glottal stop.
    """
    firsts = hop * np.arange(windows)[:, None]  # (windows, 1)
    overlaps = np.minimum(aligned.ends, firsts + hop) - np.maximum(aligned.starts, firsts)
    overlaps = np.maximum(overlaps, 0)  # (windows, S)
    own = np.array([phone_set.index(phone) for phone in aligned.phones])
    same = own[:, None] == own[None]  # (S, S)
    totals = overlaps @ same * (overlaps > 0)  # of all parts of the phoneme, at each part
    best = totals.argmax(1)
    return np.where(totals.max(1) > 0, own[best], NO_PHONE)


def phone_files(folder: str | Path) -> dict[str, Path]:
    """All alignments below a folder of TIMIT by the keys of their recordings."""
    return timit_files(Path(folder).expanduser(), (".phn",))
