"""Trunks without history, for images: the context is a function of the class or the caption."""

import abc
import math
import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.errors import ConfigError, UnknownActionError
from worldmodel.heads.base import GridSpec, State
from worldmodel.priors.base import Trunk
from worldmodel.types import NO_ACTION
from worldmodel.util.ranges import Count, Share

START = 0  # the token before the first word of a caption


class Memoryless(Trunk):
    """The base of these trunks: contexts depend on the action (or class) only, and there is no state.

    Args:
        drop: share of the training conditions that are hidden, so that the prior also works without a class; with 1
            the class is never used, which is for data whose classes have one frame each.
    """

    remembers = False

    def __init__(self, drop: Share):
        super().__init__()
        self.drop, self.sees_actions = drop, drop < 1

    @abc.abstractmethod
    def contexts_of(self, conditions: Tensor) -> Tensor:
        """conditions (M,) int64, −1 for an unknown one → contexts (M, N, width)."""

    def forward(self, previous: Tensor, actions: Tensor, first: int = 0) -> Tensor:
        return self._contexts(actions[:, first:])

    def begin(self, batch: int) -> State:
        return ()

    def step(self, state: State, previous: Tensor, actions: Tensor) -> tuple[Tensor, State]:
        return self._contexts(actions), state

    def _contexts(self, actions: Tensor) -> Tensor:
        """actions of any shape → (..., N, width), some of them hidden in training."""
        if self.training or not self.sees_actions:
            hidden = torch.rand(actions.shape, device=actions.device) < self.drop
            actions = actions.masked_fill(hidden, NO_ACTION)
        return self.contexts_of(actions.flatten()).unflatten(0, actions.shape)


class ConditionTrunk(Memoryless):
    """The embedded action (or class), the same at every position.

    Args:
        spec: of the grids and the actions. width: of a context vector. drop: as of :class:`Memoryless`.
    """

    def __init__(self, spec: GridSpec, width: Count = 64, drop: Share = 0.0):
        super().__init__(drop)
        self.positions, self.width = spec.positions, width
        self.embed = nn.Embedding(spec.num_actions + 1, width)  # the first is that of an unknown action, −1

    def contexts_of(self, conditions: Tensor) -> Tensor:
        return self.embed(conditions + 1)[:, None].expand(-1, self.positions, -1)


class CaptionTrunk(Memoryless):
    """The condition read as a text: a transformer over its words, to which every position of the grid attends.

    The names of the actions (or classes) are the captions, their words separated by ``_``: ``a_red_bus``. New captions
    of known words are possible (:meth:`learn`). With a head over the codes this is the model of DALL·E (Ramesh et al.,
    2021), first the tokens of the text and then those of the image, without a loss for the text.

    Args:
        spec: of the grids and the captions. width: of a context vector.
        blocks, heads: of the transformer. drop: as of :class:`Memoryless`.
    """

    def __init__(self, spec: GridSpec, width: Count = 64, blocks: Count = 2, heads: Count = 4, drop: Share = 0.0):
        super().__init__(drop)
        if width % heads:
            raise ConfigError(f"width {width} cannot be shared by {heads} heads; choose a multiple of the heads")
        self.positions, self.width, self.heads = spec.positions, width, heads
        split = [words(name) for name in spec.action_names]
        known = sorted({word for caption in split for word in caption})
        self.vocabulary = {word: number for number, word in enumerate(known, START + 1)}
        self.longest = 1 + max(map(len, split))
        table = torch.stack([self._tokens([])] + [self._tokens(each) for each in split])
        # (captions + 1, longest) int64: tokens, −1 after the last; the first row is no caption. Spec stores the names.
        self.table: Tensor = nn.Buffer(table, persistent=False)
        self.embed = nn.Embedding(1 + len(self.vocabulary), width)
        self.place = nn.Parameter(torch.randn(self.longest, width) * 0.02)
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.read = nn.TransformerEncoder(layer, blocks, nn.LayerNorm(width), enable_nested_tensor=False)
        self.query = nn.Parameter(torch.randn(self.positions, width) / math.sqrt(width))
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width)

    def contexts_of(self, conditions: Tensor) -> Tensor:
        if conditions.device.type == "cpu":
            asked, where = conditions.unique(return_inverse=True)  # a caption is read once for all of its images
        else:  # to know how many captions there are, the host would wait for the device
            asked, where = conditions, torch.arange(len(conditions), device=conditions.device)
        tokens = self.table[asked + 1]
        empty = tokens < 0
        read = self.read(self.embed(tokens.clamp(min=0)) + self.place, src_key_padding_mask=empty)
        key, value = self.key_value(read).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query = self.query.unflatten(-1, (self.heads, -1)).transpose(0, 1).expand(len(asked), -1, -1, -1)
        seen = F.scaled_dot_product_attention(query, key, value, attn_mask=~empty[:, None, None])
        return self.out(seen.transpose(1, 2).flatten(2))[where]

    def learn(self, caption: str) -> int:
        """The condition of a caption of known words, new or not.

        Raises :class:`UnknownActionError` for a word that training did not have, and :class:`ConfigError` for more
        words than the longest caption of training has.
        """
        asked = words(caption)
        for word in asked:
            if word not in self.vocabulary:
                raise UnknownActionError(word, tuple(self.vocabulary), what="word")
        if not 0 < len(asked) < self.longest:
            raise ConfigError(f"{caption!r} has {len(asked)} words; captions here have 1 to {self.longest - 1}")
        row = self._tokens(asked).to(self.table.device)
        if len(known := (self.table == row).all(1).nonzero()):
            return int(known[0]) - 1
        self.table = torch.cat([self.table, row[None]])
        return len(self.table) - 2

    def _tokens(self, caption: Sequence[str]) -> Tensor:
        """(longest,): the start, the words, −1 for none."""
        known = [START, *(self.vocabulary[word] for word in caption)]
        return torch.tensor(known + [-1] * (self.longest - len(known)))


def words(caption: str) -> list[str]:
    """``A red-hot_bus`` → a, red, hot, bus."""
    return re.findall(r"[^\W_]+", caption.lower())
