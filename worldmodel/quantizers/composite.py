"""Several codes for a vector, each from a quantiser of its own: of parts of the vector, or of successive residuals."""

import functools
from collections.abc import Callable

import torch
from torch import Generator, Tensor

from worldmodel.nn.modules import module_list
from worldmodel.quantizers.base import Quantized, Quantizer
from worldmodel.util.ranges import Count, NumCodes, Share

NO_CODE = -1


class CompositeQuantizer(Quantizer):
    """Quantizers of the same kind. ``num_codes`` is K of each; None for a quantizer that brings it, as FSQ does."""

    def __init__(self, count: int, quantizer: Callable[..., Quantizer], num_codes: int | None):
        super().__init__()
        given = {} if num_codes is None else {"num_codes": num_codes}
        self.parts = module_list(quantizer(**given) for _ in range(count))
        self.num_codes = self.parts[0].num_codes

    def codebook(self) -> Tensor:
        """(S, K, D of one quantizer)."""
        return torch.stack([part.codebook() for part in self.parts])


class ProductQuantizer(CompositeQuantizer):
    """S equal parts of the last axis, each with a quantiser and so a codebook of its own (product quantisation).

    The paper's CIFAR-10 latents, 8×8×10, are an 8×8 grid of 10 codes from 10 separate codebooks.

    Args:
        slots: S.
        quantizer: constructor of the quantiser of a part, called S times, with ``num_codes`` where that is given. Its
            width is that of a part: D is S times as much.
        num_codes: K of every part; None for a quantiser that brings it, as FSQ does with its levels.

    Loss terms are means over the slots, so that their weights do not depend on S. The slots are computed one after the
    other, by any quantiser: one batched product and minimum over all takes as long on a CPU (8,192 vectors, 10 slots of
    512).
    """

    def __init__(self, slots: Count, quantizer: Callable[..., Quantizer], num_codes: NumCodes | None = None):
        super().__init__(slots, quantizer, num_codes)
        self.width = slots * self.parts[0].width
        self.shape = (slots, *self.parts[0].shape)
        self._axis = -len(self.shape)  # of the slots among the axes of the codes

    def _split(self, vectors: Tensor) -> list[tuple[Quantizer, Tensor]]:
        """The quantiser and the part (..., D / S) of each slot."""
        return list(zip(self.parts, vectors.chunk(self.shape[0], -1), strict=True))

    def encode(self, vectors: Tensor) -> Tensor:
        return torch.stack([part.encode(piece) for part, piece in self._split(vectors)], self._axis)

    def lookup(self, codes: Tensor) -> Tensor:
        pieces = zip(self.parts, codes.unbind(self._axis), strict=True)
        return torch.cat([part.lookup(piece) for part, piece in pieces], -1)

    def forward(self, vectors: Tensor, generator: Generator | None = None) -> Quantized:
        results = [part(piece, generator) for part, piece in self._split(vectors)]
        return Quantized(
            torch.cat([result.vectors for result in results], -1),
            torch.stack([result.codes for result in results], self._axis),
            {name: torch.stack([result.losses[name] for result in results]).mean() for name in results[0].losses},
        )


class ResidualQuantizer(CompositeQuantizer):
    """Q codebooks, whose vectors add up to that of the input (residual vector quantisation).

    Zeghidour et al., *SoundStream*, 2021, section III.C and algorithm 1; Défossez et al., *EnCodec*, 2022, section 3.2.

    The codes of the first q codebooks do not depend on the others, so that one model serves every bitrate:
    :meth:`encode` gives all Q codes, each in [0, K), and in :meth:`lookup` a code of -1 is none and adds nothing.

    Args:
        num_codebooks: Q.
        quantizer: constructor of the quantiser of a codebook, called Q times, with ``num_codes`` where that is given;
            without slots or mixtures of codes.
        num_codes: K of every codebook; None for a quantiser that brings it.
        dropout: share of the samples of a training batch (its first axis) that go through the first q codebooks only,
            q uniform in 1 … Q for each (quantiser dropout; 1 in SoundStream, ½ in DAC). Without it, a model is not
            trained for fewer codebooks than Q.

    In training, the codes of a sample in the codebooks that it does not reach are -1, and these codebooks are trained
    on the other samples only; ``revive_after`` has to be larger than for a single quantiser. At least one sample of a
    batch goes through all codebooks, so that every codebook is trained on every process.

    Loss terms are sums over the codebooks, as in EnCodec's equation (5), each weighted by the share of the vectors that
    reach it. Gradients pass straight through, once, to the input.

    Raises ValueError for fewer than 1 codebook, a dropout outside [0, 1], or a quantiser that does not fit.
    """

    def __init__(
        self,
        num_codebooks: Count,
        quantizer: Callable[..., Quantizer],
        num_codes: NumCodes | None = None,
        dropout: Share = 0.0,
    ):
        super().__init__(num_codebooks, quantizer, num_codes)
        first = self.parts[0]
        if first.soft or first.shape:
            raise ValueError(f"a codebook makes a single code of a vector, and {type(first).__name__} does not")
        self.width, self.shape, self.dropout = first.width, (num_codebooks,), dropout

    def encode(self, vectors: Tensor) -> Tensor:
        vectors, codes = vectors.detach().float(), []
        total = torch.zeros_like(vectors)
        for part in self.parts:
            codes.append(part.encode(vectors - total))
            total = total + part.lookup(codes[-1])
        return torch.stack(codes, -1)

    def lookup(self, codes: Tensor) -> Tensor:
        """Codes (..., Q) in [-1, K) → vectors (..., D) float32: the sum over the codebooks that have a code."""
        pairs = zip(self.parts, codes.unbind(-1), strict=True)
        vectors = (part.lookup(code.clamp(min=0)).masked_fill(code[..., None] < 0, 0.0) for part, code in pairs)
        return functools.reduce(torch.add, vectors)

    def forward(self, vectors: Tensor, generator: Generator | None = None) -> Quantized:
        vectors = vectors.float()
        flat = vectors.reshape(-1, self.width)
        reaching = self._rows(vectors, generator)
        total = torch.zeros_like(flat)
        codes = flat.new_full((len(flat), *self.shape), NO_CODE, dtype=torch.int64)
        losses: dict[str, Tensor] = {}
        for number, part in enumerate(self.parts):
            rows = None if reaching is None else reaching[number]
            left = flat - total  # its gradient is the input's: each codebook's commitment pulls the encoder
            result = part(left if rows is None else left[rows], generator)
            if rows is None:
                total, codes[:, number] = total + result.vectors.detach(), result.codes
            else:
                total = total.index_add(0, rows, result.vectors.detach())
                codes[rows, number] = result.codes
            for name, term in result.losses.items():
                weighed = term * (result.codes.numel() / len(flat))
                losses[name] = losses[name] + weighed if name in losses else weighed
        straight = total + (flat - flat.detach())  # exactly the sum, with the gradient of the input
        return Quantized(straight.view(vectors.shape), codes.view(*vectors.shape[:-1], *self.shape), losses)

    def _rows(self, vectors: Tensor, generator: Generator | None) -> list[Tensor] | None:
        """The indices of the vectors (M, D) that go through each codebook; None where all go through all.

        Their numbers are sizes of tensors, so the host has to wait for a device, but once for all codebooks.
        """
        counts = self._reached(vectors, generator)
        if counts is None:
            return None
        counts = counts.cpu()
        samples = [(counts > number).nonzero()[:, 0] for number in range(self.shape[0])]
        size = vectors[0].numel() // self.width
        rows = torch.cat(samples).to(vectors.device)[:, None] * size + torch.arange(size, device=vectors.device)
        return list(rows.flatten().split([len(part) * size for part in samples]))

    def _reached(self, vectors: Tensor, generator: Generator | None) -> Tensor | None:
        """How many codebooks each sample of the batch goes through, (B,) on the device of the generator. The draws of a
        batch are stratified over (0, 1)."""
        if not (self.training and self.dropout) or vectors.dim() < 2:
            return None
        samples, (num_codebooks,) = len(vectors), self.shape
        device = generator.device if generator is not None else vectors.device
        strata = torch.randperm(samples, generator=generator, device=device)
        draws = (strata + torch.rand(1, generator=generator, device=device)) / samples
        counts = (draws / self.dropout * num_codebooks).floor().long().add_(1).clamp_(max=num_codebooks)
        counts.scatter_(0, draws.argmax()[None], num_codebooks)
        return counts
