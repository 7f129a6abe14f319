"""Formats of files by their first bytes: an intact file of another format must not be reported as damaged."""

import re
from collections.abc import Sequence
from pathlib import Path

_KINDS = {
    "M4A": rb"....ftypM4A", "HEIC": rb"....ftyp(hei|mif|hevc|msf)", "AVIF": rb"....ftypavi", "MP4": rb"....ftyp",
    "JPEG 2000": rb"....jP  |\xff\x4f\xff\x51", "JPEG XL": rb"....JXL |\xff\x0a", "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG", "GIF": rb"GIF8", "BMP": rb"BM", "TIFF": rb"II\*\0|MM\0\*", "WebP": rb"RIFF....WEBP",
    "PSD": rb"8BPS", "SVG": rb"\s*(<\?xml[^>]*>\s*)?(<!DOCTYPE svg[^>]*>\s*)?<svg", "PDF": rb"%PDF",
    "AVI": rb"RIFF....AVI ", "Matroska": rb"\x1a\x45\xdf\xa3", "WAV": rb"(RIFF|RF64)....WAVE", "FLAC": rb"fLaC",
    "Ogg": rb"OggS", "MP3": rb"ID3|\xff[\xfb\xf3\xf2]", "WMA": rb"0&\xb2u", "AMR": rb"#!AMR", "AC-3": rb"\x0bw",
    "WavPack": rb"wvpk", "TTA": rb"TTA1", "gzip": rb"\x1f\x8b", "HDF5": rb"\x89HDF", "npy": rb"\x93NUMPY",
    "pickle": rb"\x80[\x02-\x05]", "MATLAB": rb"MATLAB", "Parquet": rb"PAR1", "Zstandard": rb"\x28\xb5\x2f\xfd",
    "xz": rb"\xfd7zXZ", "7z": rb"7z\xbc\xaf",
}  # fmt: skip


def unreadable(path: Path, reason: object, formats: Sequence[str], remedy: str) -> str:
    """The end of a sentence about a file that cannot be read: it is of another format than ``formats``, and ``remedy``
    says how to convert it, or it is damaged."""
    with path.open("rb") as file:
        head = file.read(512)
    kind = next((name for name, pattern in _KINDS.items() if re.match(pattern, head, re.DOTALL)), "")
    if kind and kind not in formats:
        return f"is a file of format {kind}, which is not supported here; {remedy}"
    return f"cannot be read ({reason}); remove it or restore it"
