"""Phones of TIMIT: the alignments beside its recordings, folded to fewer phonemes, one a window.

TIMIT knows 61 phones. K.-F. Lee and H.-W. Hon (Speaker-independent phone recognition using hidden Markov models, IEEE
Transactions on Acoustics, Speech, and Signal Processing 37, 1989) fold them to 39 to score: allophones are one
phoneme, closures and pauses are silence, the glottal stop q is none.
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
"""The phoneme of a window that has none: behind the last alignment, or most of it a glottal stop."""

_ALIKE = {
    "aa": "aa ao", "ah": "ah ax ax-h", "er": "er axr", "hh": "hh hv", "ih": "ih ix", "l": "l el", "m": "m em",
    "n": "n en nx", "ng": "ng eng", "sh": "sh zh", "uw": "uw ux",
    SILENCE: "h# # pau epi pcl tcl kcl bcl dcl gcl",
}  # fmt: skip
_ALONE = "ae aw ay b ch d dh dx eh ey f g iy jh k ow oy p r s t th uh v w y z"
_NONE = ("q",)


class Phones(NamedTuple):
    """The alignment of a recording: S phones one behind another."""

    starts: np.ndarray  # (S,) int64, samples of the recording at its own rate
    ends: np.ndarray  # (S,) int64, exclusive
    phones: tuple[str, ...]  # (S,) as TIMIT has them


@dataclasses.dataclass(frozen=True)
class PhoneSet:
    """Some phonemes, and which of them a phone of TIMIT is."""

    names: tuple[str, ...]  # sorted
    folding: Mapping[str, str | None]  # of the 61: to a name, or to nothing

    def index(self, phone: str) -> int:
        """The place of a phone's phoneme among the names; :data:`NO_PHONE` of one that is none. Raises
        :class:`DataError` for a phone that TIMIT does not have.
        """
        if phone not in self.folding:
            raise DataError(f"unknown phone {phone!r}; TIMIT knows {', '.join(sorted(self.folding))}")
        name = self.folding[phone]
        return NO_PHONE if name is None else self.names.index(name)


_FOLDING = {phone: name for name, phones in _ALIKE.items() for phone in phones.split()}
_FOLDING |= {phone: phone for phone in _ALONE.split()}
PHONES39 = PhoneSet(tuple(sorted(set(_FOLDING.values()))), {**_FOLDING, **dict.fromkeys(_NONE)})


def read_phones(path: str | Path) -> Phones:
    """An alignment ``.phn``: a line ``start end phone`` a phone, in samples. Raises :class:`DataError` for a file that
    is none.
    """
    rows = []
    try:
        for line in Path(path).read_text(encoding="ascii").splitlines():
            if line.strip():
                start, end, phone = line.split()
                rows.append((int(start), int(end), phone.lower()))
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); TIMIT has it beside the recording") from error
    except ValueError as error:
        raise DataError(f"{path} is no alignment; its lines should be: start end phone") from error
    if not rows or any(not 0 <= start <= end for start, end, _ in rows):
        raise DataError(f"{path} holds {'no phone' if not rows else 'a phone that ends before it starts'}")
    starts, ends, phones = zip(*rows, strict=True)
    return Phones(np.array(starts, np.int64), np.array(ends, np.int64), phones)


def frame_phones(aligned: Phones, windows: int, hop: int = 640, phone_set: PhoneSet = PHONES39) -> np.ndarray:
    """The phoneme that overlaps each window most: (windows,) int64, places in ``phone_set.names``.

    Window t is samples [hop t, hop (t + 1)) in the samples of the alignment (of 16,000 a second: for sound resampled
    to another rate, ``hop`` is what a window was before). Parts of one phoneme in a window count together; of a tie the
    one that comes first. :data:`NO_PHONE` where no phone reaches, or most is a glottal stop.
    """
    firsts = hop * np.arange(windows)[:, None]  # (windows, 1)
    overlaps = np.minimum(aligned.ends, firsts + hop) - np.maximum(aligned.starts, firsts)
    overlaps = np.maximum(overlaps, 0)  # (windows, S)
    own = np.array([phone_set.index(phone) for phone in aligned.phones])
    same = own[:, None] == own[None]  # (S, S)
    totals = overlaps @ same * (overlaps > 0)  # of the whole phoneme, where a part of it lies
    best = totals.argmax(1)
    return np.where(totals.max(1) > 0, own[best], NO_PHONE)


def phone_files(folder: str | Path) -> dict[str, Path]:
    """All alignments below a folder of TIMIT, by the keys of their recordings."""
    return timit_files(Path(folder).expanduser(), (".phn",))
