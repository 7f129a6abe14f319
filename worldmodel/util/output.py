"""Where commands write: ``--output`` is a file, a folder (one that exists, or a name with a final ``/``), or a name
without a suffix."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from worldmodel.errors import ConfigError
from worldmodel.util.files import check_writable

VIDEO_SUFFIXES = (".mp4", ".gif", ".png")
SOUND_SUFFIXES = (".wav", ".flac")
LONGEST = 60  # characters of a file's name that describe its content


class Output(NamedTuple):
    """Where files go."""

    stem: Path  # their common name, without suffix
    suffix: str  # of the one file that the user named; empty where any may be written

    def paths(self, suffixes: Sequence[str]) -> list[Path]:
        """The one file that was named, or one for each suffix."""
        return [self.path(suffix) for suffix in ([self.suffix] if self.suffix else suffixes)]

    def path(self, suffix: str, part: str = "") -> Path:
        """The file of this suffix; ``part`` ends its name where the user named no file."""
        return self.stem.with_name(f"{self.stem.name}{part if not self.suffix else ''}{suffix}")


def check_suffix(path: str | Path, suffixes: Sequence[str]) -> Path:
    """The path when its suffix is one of these. Raises :class:`ConfigError`, which lists them."""
    path = Path(path)
    if path.suffix.lower() not in suffixes:
        raise ConfigError(f"cannot write {str(path)!r}; the name must end in {', '.join(suffixes)}")
    return path


def check_output(output: str | None, suffixes: Sequence[str]) -> None:
    """Raises :class:`ConfigError` for a file of another suffix, before anything slow is done."""
    if output is not None and Path(output).suffix and not is_folder(output):
        check_suffix(output, suffixes)


def is_folder(output: str) -> bool:
    """Whether an ``--output`` is a folder: one that exists, or a name that ends in ``/``."""
    return output.endswith(os.sep) or Path(output).is_dir()


def output_of(output: str | None, folder: Path, name: str, suffixes: Sequence[str]) -> Output:
    """What ``--output`` means. Without it, or where it is a folder, the files are called ``name``.

    Raises :class:`ConfigError` for a file of another suffix, OSError for a folder that cannot be written to.
    """
    given = folder if output is None else Path(output)
    if output is None or is_folder(output):
        result = Output(given / name, "")
    else:
        check_output(output, suffixes)
        result = Output(given.with_suffix(""), given.suffix)
    check_writable(result.stem.parent)
    return result


def words_in_name(text: str) -> str:
    """A script such as ``forward*8,left`` as part of a file's name: ``forward8-left``."""
    return re.sub(r"[^\w,-]+", "", text).replace(",", "-")[:LONGEST]


def options_in_name(*options: tuple[str, float | None, float | None]) -> str:
    """What distinguishes files that were made under other options: (letter, value, default) → ``-t0.5-k7``."""
    return "".join(f"-{letter}{value:g}" for letter, value, default in options if value not in (default, None))
