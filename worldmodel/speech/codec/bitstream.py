"""The file format of compressed sound: a header, the codes and a checksum.

Little-endian: magic, version, coding, number of codebooks, sampling rate, number of samples, fingerprints of the codec
and of the entropy model, gain, codes, and a CRC-32 of everything before it: 38 bytes and the codes.

Codes are ordered by position, then by codebook. Codes of fixed width have the most significant bit first, and zeros
fill the last byte. For entropy-coded codes see :mod:`worldmodel.speech.codec.entropy`.
"""

import dataclasses
import struct
import zlib
from pathlib import Path
from typing import Self

import numpy as np

from worldmodel.errors import DataError
from worldmodel.util.files import whole

MAGIC = b"WMCB"
VERSION = 1
FIXED, ENTROPY = 0, 1  # codings
NO_MODEL = bytes(8)

_HEADER = struct.Struct("<4sBBHII8s8sh")
_CHECKSUM = struct.Struct("<I")


@dataclasses.dataclass(frozen=True)
class Bitstream:
    """Compressed sound."""

    rate: int  # samples a second
    samples: int  # of the sound
    codebooks: int  # number of codebooks that are used, the first ones of the codec
    codec: bytes  # 8 bytes, fingerprint of the codec
    model: bytes  # 8 bytes, fingerprint of the entropy model; NO_MODEL for codes of fixed width
    payload: bytes = dataclasses.field(repr=False)  # the codes
    gain: int = 0  # in hundredths of dB, applied to the sound before encoding, within ±32767

    @property
    def coding(self) -> int:
        return FIXED if self.model == NO_MODEL else ENTROPY

    @property
    def seconds(self) -> float:
        return self.samples / self.rate

    @property
    def bits_per_second(self) -> float:
        """Bitrate of the codes without the header; 0 without samples."""
        return 8 * len(self.payload) / self.seconds if self.samples else 0.0

    def to_bytes(self) -> bytes:
        """Raises :class:`DataError` for more samples than the header can state."""
        try:
            facts = self.rate, self.samples, self.codec, self.model, self.gain
            header = _HEADER.pack(MAGIC, VERSION, self.coding, self.codebooks, *facts)
        except struct.error:
            raise DataError(f"a bitstream holds up to 2³² samples, not {self.samples:,}; cut the sound") from None
        body = header + self.payload
        return body + _CHECKSUM.pack(zlib.crc32(body))

    @classmethod
    def of_bytes(cls, data: bytes, name: str = "the bitstream") -> Self:
        """Inverse of :meth:`to_bytes`. Raises :class:`DataError` for foreign, newer, truncated or damaged data."""
        if data[:4] != MAGIC:
            raise DataError(f"{name} is no bitstream of this codec; it does not begin with {MAGIC.decode()}")
        if len(data) < _HEADER.size + _CHECKSUM.size:
            raise DataError(f"{name} is cut short: it ends within its header")
        _, version, coding, codebooks, rate, samples, codec, model, gain = _HEADER.unpack_from(data)
        if version != VERSION:
            raise DataError(f"{name} is a bitstream of version {version}; this program reads version {VERSION}")
        if _CHECKSUM.unpack_from(data, len(data) - _CHECKSUM.size)[0] != zlib.crc32(data[: -_CHECKSUM.size]):
            raise DataError(f"{name} is damaged or cut short: its checksum does not fit")
        stream = cls(rate, samples, codebooks, codec, model, data[_HEADER.size : -_CHECKSUM.size], gain)
        if coding != stream.coding or rate < 1 or codebooks < 1:
            raise DataError(f"{name} is damaged: its header contradicts itself")
        return stream

    def save(self, path: str | Path) -> None:
        """Write the file atomically."""
        with whole(Path(path)) as part:
            part.write_bytes(self.to_bytes())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Raises :class:`DataError` for a missing file, and like :meth:`of_bytes`."""
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror}") from None
        return cls.of_bytes(data, str(path))


def width_of(codes: int) -> int:
    """Bits of a code of fixed width: ⌈log₂ K⌉."""
    return (codes - 1).bit_length()


def pack(codes: np.ndarray, size: int) -> bytes:
    """Codes of any shape, ints in [0, size) → bytes. Raises ValueError for others."""
    if codes.size and not 0 <= codes.min() <= codes.max() < size:
        raise ValueError(f"codes from {codes.min()} to {codes.max()} are not all in [0, {size})")
    shifts = np.arange(width_of(size))[::-1]
    return np.packbits((codes.reshape(-1, 1) >> shifts & 1).astype(np.uint8)).tobytes()


def unpack(data: bytes, shape: tuple[int, ...], size: int) -> np.ndarray:
    """Inverse of :func:`pack`: int64 of a shape. Raises :class:`DataError` when the bytes do not fit."""
    width, count = width_of(size), int(np.prod(shape))
    if len(data) != (count * width + 7) // 8:
        raise DataError(f"{count:,} codes of {width} bits need {(count * width + 7) // 8:,} bytes, not {len(data):,}")
    bits = np.unpackbits(np.frombuffer(data, np.uint8), count=count * width).reshape(count, width)
    codes = bits.astype(np.int64) @ (1 << np.arange(width, dtype=np.int64)[::-1])
    if count and codes.max() >= size:
        raise DataError(f"code {codes.max()} is none of {size}; the bitstream is of another codec")
    return codes.reshape(shape)
