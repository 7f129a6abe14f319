"""A codec of sound: waves → codes → bitstreams and back, as a whole or streaming.

The bitrate determines the number of codebooks of a residual quantizer that are used. A position covers ``factor``
samples; it is encoded when its last sample arrives and decoded when its codes arrive, so the latency is ``factor``
samples.
"""

import itertools
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from worldmodel.data.codes import fingerprint
from worldmodel.errors import ConfigError, DataError
from worldmodel.nn.modules import dtype_of
from worldmodel.quantizers import NO_CODE, ResidualQuantizer
from worldmodel.speech.codec import entropy
from worldmodel.speech.codec.bitstream import NO_MODEL, Bitstream, pack, unpack, width_of
from worldmodel.speech.codec.entropy import CodeModel
from worldmodel.speech.nn.causal import Causal
from worldmodel.speech.nn.mel import companded, expanded
from worldmodel.tokenizers import VQVAE
from worldmodel.types import to_float, to_uint8


class Codec:
    """A trained tokenizer of sound as a codec. Waves are (L,) float pressure in [-1, 1], codes (n, q) int64 in [0, K).

    Args:
        tokenizer: a VQ-VAE of sound; only one with a residual quantizer has several bitrates.
        rate: samples a second.

    Raises :class:`ConfigError` for a tokenizer of other data than one channel of sound.
    """

    def __init__(self, tokenizer: VQVAE, rate: int = 16_000):
        if not tokenizer.joined or tokenizer.frame_shape[0] != 1:
            shape = "×".join(map(str, tokenizer.frame_shape))
            raise ConfigError(f"a codec is for sound of one channel, not for frames {shape}")
        self.tokenizer, self.rate = tokenizer.eval(), rate
        self.num_codes, self.num_codebooks = tokenizer.num_codes, tokenizer.slots[0] if tokenizer.slots else 1
        self.scalable = isinstance(tokenizer.quantizer, ResidualQuantizer)
        self.factor = tokenizer.encoder.factor
        self.fingerprint = bytes.fromhex(fingerprint(tokenizer))[:8]

    @property
    def causal(self) -> bool:
        """Whether the codec can stream."""
        return isinstance(self.tokenizer.encoder, Causal) and isinstance(self.tokenizer.decoder, Causal)

    @property
    def latency(self) -> int:
        """Delay of a causal codec in samples, without the time of the computation."""
        return self.factor

    def bits_per_second(self, codebooks: int) -> float:
        """Bitrate of codes of fixed width."""
        return codebooks * width_of(self.num_codes) * self.rate / self.factor

    def codebooks_of(self, kbps: float) -> int:
        """The number of codebooks whose codes of fixed width fit into a bitrate. Raises :class:`ConfigError`."""
        codebooks = min(int(1000 * kbps / self.bits_per_second(1) + 1e-9), self.num_codebooks)
        if codebooks < 1 or (codebooks < self.num_codebooks and not self.scalable):
            least = 1 if self.scalable else self.num_codebooks
            raise ConfigError(f"{kbps:g} kbit/s are too few; this codec needs {self.bits_per_second(least) / 1000:g}")
        return codebooks

    def positions(self, samples: int) -> int:
        """Number of positions of a wave; silence fills the last one."""
        return -(-samples // self.factor)

    def encode(self, wave: np.ndarray, codebooks: int | None = None) -> np.ndarray:
        """A wave (L,) → codes (positions, q) of the first ``codebooks``, or of all. Raises :class:`ConfigError`."""
        used = self._used(codebooks)
        filled = np.pad(wave, (0, self.positions(len(wave)) * self.factor - len(wave)))
        return self._codes(filled, self.tokenizer.encoder, used)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Codes (n, q) → a wave (n · factor,) float32."""
        return self._wave(codes, self.tokenizer.decoder)

    def encode_stream(self, chunks: Iterable[np.ndarray], codebooks: int | None = None) -> Iterator[np.ndarray]:
        """Chunks of a wave (L,), any length → for each, the codes (n, q) of the positions that it completes, n ≥ 0; in
        the end those of the last position, padded with silence, (1, q) or (0, q).

        The codes equal those of the whole wave, except where rounding decides between two codes. Raises
        :class:`ConfigError` for a codec that is not causal.
        """
        encoder, used, rest = self._continued(self.tokenizer.encoder), self._used(codebooks), np.zeros(0, np.float32)
        for chunk in itertools.chain(chunks, [None]):
            following = np.zeros(-len(rest) % self.factor) if chunk is None else chunk
            wave = np.concatenate([rest, following]).astype(np.float32)
            ready = len(wave) // self.factor * self.factor
            rest = wave[ready:]
            yield self._codes(wave[:ready], encoder, used)

    def decode_stream(self, chunks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Chunks of codes (n, q) → for each, the next samples (n · factor,). Raises :class:`ConfigError` likewise."""
        decoder = self._continued(self.tokenizer.decoder)
        for codes in chunks:
            yield self._wave(codes, decoder)

    def _continued(self, network: nn.Module) -> Callable[[Tensor], Tensor]:
        """A causal network that continues at every call where the previous call ended."""
        if not self.causal:
            names = f"{type(self.tokenizer.encoder).__name__} and {type(self.tokenizer.decoder).__name__}"
            raise ConfigError(f"{names} read ahead, so they cannot stream; choose CausalEncoder and CausalDecoder")
        assert isinstance(network, Causal)
        state: Any = None

        def step(chunk: Tensor) -> Tensor:
            nonlocal state
            outputs, state = network.step(chunk, state)
            return outputs

        return step

    def write(self, codes: np.ndarray, samples: int, model: CodeModel | None = None, gain: int = 0) -> Bitstream:
        """Codes (positions, q) of a wave of ``samples`` samples → a bitstream. Raises :class:`ConfigError`."""
        self._check(model)
        if model is None:
            payload, name = pack(codes, self.num_codes), NO_MODEL
        else:
            payload, name = entropy.encode(model, codes)[0] + _checksum(codes), model.fingerprint
        return Bitstream(self.rate, samples, codes.shape[1], self.fingerprint, name, payload, gain)

    def read(self, stream: Bitstream, model: CodeModel | None = None) -> np.ndarray:
        """The codes (positions, q) of a bitstream; codes of fixed width need no model.

        Raises :class:`DataError` for an invalid bitstream, one of another codec or model, and when the model decodes
        other codes than were encoded, which rounding on another machine can cause.
        """
        if stream.codec != self.fingerprint:
            fault = f"the bitstream was written by the codec {stream.codec.hex()}"
            raise DataError(f"{fault}, and this one is {self.fingerprint.hex()}; name the run that wrote it")
        if stream.rate != self.rate or not 1 <= stream.codebooks <= self.num_codebooks:
            found = f"{stream.codebooks} codebooks at {stream.rate:,} Hz"
            raise DataError(f"the bitstream has {found}, and its codec has {self.num_codebooks} at {self.rate:,} Hz")
        shape = self.positions(stream.samples), stream.codebooks
        if stream.model == NO_MODEL:
            return unpack(stream.payload, shape, self.num_codes)
        if model is None or model.fingerprint != stream.model:
            given = "none was given" if model is None else f"this one is {model.fingerprint.hex()}"
            raise DataError(f"the bitstream is entropy-coded by the model {stream.model.hex()}, and {given}")
        self._check(model)
        codes = entropy.decode(model, stream.payload[:-2], *shape)
        if _checksum(codes) != stream.payload[-2:]:
            fault = "the entropy model does not reproduce the encoded codes, because this machine rounds differently"
            remedy = "decode it on the machine that encoded it, or encode with --entropy counts or none"
            raise DataError(f"{fault}; {remedy}")
        return codes

    def _check(self, model: CodeModel | None) -> None:
        if model is not None and (model.num_codes != self.num_codes or model.num_codebooks < self.num_codebooks):
            found = f"{model.num_codebooks} codebooks of {model.num_codes} codes"
            own = f"{self.num_codebooks} of {self.num_codes}"
            raise ConfigError(f"the entropy model is of {found}, and the codec has {own}")

    def _used(self, codebooks: int | None) -> int:
        used = self.num_codebooks if codebooks is None else codebooks
        if not 1 <= used <= self.num_codebooks or (used < self.num_codebooks and not self.scalable):
            choices = f"1 to {self.num_codebooks}" if self.scalable else f"exactly {self.num_codebooks}"
            raise ConfigError(f"this codec uses {choices} codebooks, not {used}")
        return used

    @torch.no_grad()
    def _codes(self, wave: np.ndarray, encoder: Callable[[Tensor], Tensor], used: int) -> np.ndarray:
        """Pressure (L,), L a multiple of the factor → (n, q) by an encoder (1, 1, L) → (1, D, n)."""
        if not len(wave):
            return np.zeros((0, used), np.int64)
        pressure = torch.as_tensor(wave, dtype=torch.float32, device=next(self.tokenizer.parameters()).device)
        frames = to_float(to_uint8(companded(pressure)))  # rounded to sample values as in training
        vectors = self.tokenizer.project(encoder(frames[None, None].to(dtype_of(self.tokenizer.project))))
        codes = self.tokenizer.quantizer.encode(vectors.movedim(1, -1).float())[0]
        return codes.reshape(len(codes), -1)[:, :used].cpu().numpy()

    @torch.no_grad()
    def _wave(self, codes: np.ndarray, decoder: Callable[[Tensor], Tensor]) -> np.ndarray:
        """(n, q) → (n · factor,) float32 by a decoder (1, D, n) → (1, outputs, n · factor)."""
        if not len(codes):
            return np.zeros(0, np.float32)
        tokenizer = self.tokenizer
        full = np.pad(codes, ((0, 0), (0, self.num_codebooks - codes.shape[1])), constant_values=NO_CODE)
        grid = torch.from_numpy(full).to(next(tokenizer.parameters()).device)[None]
        vectors = tokenizer.read(grid if tokenizer.slots else grid[..., 0])
        outputs = decoder(vectors.to(dtype_of(tokenizer.project)).movedim(-1, 1))
        return expanded(tokenizer.likelihood.mean(outputs).clamp(-1, 1))[0, 0].float().cpu().numpy()


def _checksum(codes: np.ndarray) -> bytes:
    """A checksum of codes (n, q) of 2 bytes, which detects wrong entropy decoding."""
    return (zlib.crc32(codes.astype("<u4").tobytes()) & 0xFFFF).to_bytes(2, "little")
