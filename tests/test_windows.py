"""Windows and cached codes: alignment, fairness, and a cache that is never stale."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from worldmodel.data.codes import CodeStore, encode_store
from worldmodel.data.records import Item
from worldmodel.data.store import EpisodeStore
from worldmodel.data.windows import Windows
from worldmodel.errors import DataError
from worldmodel.tokenizers.base import Reconstruction, Tokenizer
from worldmodel.types import NO_ACTION, Episode, Segment, Spec

SPEC = Spec("test", (1, 2, 2), ("a", "b", "c"), 10.0)
LENGTHS = [6, 1, 9, 3]


def numbered(episode: int, length: int, condition: int = NO_ACTION) -> Episode:
    """Every frame shows its episode, its place and 100 + the action that led to it; the reward is the place."""
    actions = np.arange(length) * 7 % 3
    frames = np.zeros((length + 1, 1, 2, 2), np.uint8)
    frames[:, 0, 0, 0] = episode
    frames[:, 0, 0, 1] = np.arange(length + 1)
    frames[:, 0, 1, 0] = 100 + np.concatenate([[NO_ACTION], actions])
    frames[-1, 0, 1, 1] = 1 + episode % 2
    rewards = np.arange(1, length + 1)
    return Episode.from_steps(frames, actions, rewards, episode % 2 == 0, episode % 2 == 1, condition)


@pytest.fixture
def store(tmp_path: Path) -> EpisodeStore:
    return extend(tmp_path / "data", LENGTHS)


def extend(path: Path, lengths: list[int]) -> EpisodeStore:
    with EpisodeStore.writer(path, SPEC) as store:
        for length in lengths:
            store.append(numbered(len(store), length))
    return EpisodeStore.open(path)


def check_alignment(segment: Segment, pictures: Tensor) -> None:
    """The facts beside each frame are the facts that the frame itself shows. ``pictures`` (B, T, 4)."""
    valid = segment.valid
    for row in range(len(valid)):
        count, gap = int(valid[row].sum()), int(valid[row].int().argmax())
        assert valid[row].tolist() == [False] * gap + [True] * count + [False] * (valid.shape[1] - count - gap)
    episode, place, action, end = (pictures[..., i].long() for i in range(4))
    assert torch.equal(segment.actions[valid], action[valid] - 100)
    assert torch.equal(segment.rewards[valid], place[valid].float())
    assert torch.equal(segment.terminated[valid], end[valid] == 1)
    assert torch.equal(segment.truncated[valid], end[valid] == 2)
    assert (episode == episode.gather(1, valid.int().argmax(1, keepdim=True)))[valid].all()
    steps = place[:, 1:] - place[:, :-1]
    assert (steps == 1)[valid[:, 1:] & valid[:, :-1]].all()
    for padding in (segment.terminated, segment.truncated, segment.rewards, pictures):
        assert not padding[~valid].any()
    assert (segment.actions[~valid] == NO_ACTION).all()


@pytest.mark.parametrize("length", [1, 4, 20])
def test_windows_say_what_their_frames_show(store: EpisodeStore, length: int) -> None:
    windows = Windows(store, "all", length)
    assert len(windows) == sum(LENGTHS) + len(LENGTHS)
    segment = windows.sample(500, torch.Generator().manual_seed(0))
    assert segment.frames is not None and segment.frames.dtype == torch.uint8
    assert segment.frames.shape == (500, length, 1, 2, 2) and segment.actions.shape == (500, length)
    check_alignment(segment, segment.frames.flatten(2))
    seen = {(int(e), int(p)) for e, p in segment.frames.flatten(2)[segment.valid][:, :2]}
    assert len(seen) == len(windows)


def test_every_frame_is_equally_likely(store: EpisodeStore) -> None:
    windows = Windows(store, "all", 4)
    segment = windows.sample(60_000, torch.Generator().manual_seed(1))
    assert segment.frames is not None
    pictures = segment.frames.flatten(2)[segment.valid].long()
    counts = torch.bincount(pictures[:, 0] * 16 + pictures[:, 1])
    counts = counts[counts > 0].double()
    assert len(counts) == len(windows)
    assert (counts / counts.mean() - 1).abs().max() < 0.05  # one sigma is 1 %


@pytest.mark.parametrize("length", [4, 6])
def test_behind_a_lead_every_frame_is_equally_likely_and_none_is_missing(store: EpisodeStore, length: int) -> None:
    windows = Windows(store, "all", length, lead=3)
    segment = windows.sample(60_000, torch.Generator().manual_seed(1))
    assert segment.frames is not None
    check_alignment(segment, segment.frames.flatten(2))
    assert segment.valid[:, 3:].any(1).all()
    pictures = segment.frames[:, 3:].flatten(2)[segment.valid[:, 3:]].long()
    counts = torch.bincount(pictures[:, 0] * 16 + pictures[:, 1])
    counts = counts[counts > 0].double()
    assert len(counts) == len(windows)
    assert (counts / counts.mean() - 1).abs().max() < 0.05
    # The frames that lead to the first of an episode are missing, those of a later one are there.
    place = segment.frames[:, 3, 0, 0, 1].long()
    there = segment.valid[:, 3]
    assert torch.equal(segment.valid[there, :3].sum(1), place[there].clamp(max=3))


def test_sampling_repeats_with_its_generator(store: EpisodeStore) -> None:
    windows = Windows(store, "all", 4)
    one, two, other = (windows.sample(16, torch.Generator().manual_seed(seed)) for seed in (5, 5, 6))
    assert one.frames is not None and two.frames is not None and other.frames is not None
    assert torch.equal(one.frames, two.frames) and not torch.equal(one.frames, other.frames)


def test_windows_keep_to_their_episodes(store: EpisodeStore) -> None:
    segment = Windows(store, [3, 1], 3).sample(100, torch.Generator().manual_seed(0))
    assert segment.frames is not None
    assert set(segment.frames[segment.valid][:, 0, 0, 0].tolist()) == {1, 3}
    check_alignment(segment, segment.frames.flatten(2))
    with pytest.raises(DataError, match=r"no episode to take windows from: .* has 4, 1 of them held out"):
        Windows(store, [], 3).sample(1, torch.Generator())
    with pytest.raises(DataError, match="episodes 0 to 3"):
        Windows(store, [4])
    with pytest.raises(DataError, match="length 0"):
        Windows(store, "all", 0)
    with pytest.raises(DataError, match="after a lead of 4; got length 4"):
        Windows(store, "all", 4, lead=4)


def test_fixed_windows_are_whole_different_and_spread(store: EpisodeStore) -> None:
    windows = Windows(store)
    segment = windows.fixed(6, 4, seed=3)
    assert segment.frames is not None and segment.valid.all()
    check_alignment(segment, segment.frames.flatten(2))
    starts = [(int(e), int(p)) for e, p in segment.frames[:, 0].flatten(1)[:, :2]]
    assert len(set(starts)) == 6
    # Episodes of 7, 2, 10, 4 frames hold 4, 0, 7, 1 windows of 4.
    assert np.bincount([episode for episode, _ in starts], minlength=4).tolist() in ([2, 0, 3, 1], [3, 0, 2, 1])
    again = windows.fixed(6, 4, seed=3)
    assert again.frames is not None and torch.equal(segment.frames, again.frames)
    assert len(windows.fixed(1000, 4).valid) == 4 + 7 + 1
    with pytest.raises(DataError, match=r"no episode in .* has 11 frames; the longest has 10"):
        windows.fixed(1, 11)


def test_cover_shows_every_frame_once_in_order(store: EpisodeStore) -> None:
    seen = []
    for segment in Windows(store, [0, 2, 3], 4).cover(batch=2):
        assert segment.frames is not None
        check_alignment(segment, segment.frames.flatten(2))
        seen += [(int(e), int(p)) for e, p in segment.frames.flatten(2)[segment.valid][:, :2]]
    assert seen == [(episode, place) for episode in (0, 2, 3) for place in range(LENGTHS[episode] + 1)]


def images(path: Path, count: int) -> EpisodeStore:
    """Images whose first pixel is their number and whose class is the number modulo 3."""
    with EpisodeStore.writer(path, SPEC) as store:
        store.extend([Item(numbered(i, 0, condition=i % 3), i % 4 == 3) for i in range(count)])
    return EpisodeStore.open(path)


def test_the_action_of_an_image_is_its_class(tmp_path: Path) -> None:
    store = images(tmp_path, 40)
    windows = Windows(store, "train", 1)
    assert len(windows) == 30
    for segment in (windows.sample(200, torch.Generator().manual_seed(0)), windows.fixed(20), *windows.cover(7)):
        assert segment.frames is not None and segment.valid.all() and segment.actions.shape[1] == 1
        number = segment.frames[:, 0, 0, 0, 0].long()
        assert torch.equal(segment.actions[:, 0], number % 3) and (number % 4 != 3).all()
        assert torch.equal(segment.terminated[:, 0], number % 2 == 0)  # each at its own, only frame
    seen = windows.sample(2000, torch.Generator().manual_seed(0)).frames
    assert seen is not None and len(seen[:, 0, 0, 0, 0].unique()) == 30
    behind = Windows(store, "train", 4, lead=3).sample(
        50, torch.Generator().manual_seed(0)
    )  # nothing leads to an image
    assert behind.valid.tolist() == [[False, False, False, True]] * 50
    assert (behind.actions[:, :3] == NO_ACTION).all() and (behind.actions[:, 3] >= 0).all()


def test_codes_are_computed_in_batches_over_episodes(tmp_path: Path) -> None:
    store = images(tmp_path / "data", 10)
    with EpisodeStore.writer(store.path, SPEC) as writer:
        writer.append(numbered(10, 8))  # 9 frames: more than what is left of a batch, and more than one
        writer.append(numbered(11, 0))
    store = EpisodeStore.open(store.path)
    calls: list[tuple[int, int]] = []
    codes = encode_store(store, FourCodes(), tmp_path / "codes", batch=4, progress=lambda n, of: calls.append((n, of)))
    assert calls == [(4, 20), (8, 20), (12, 20), (16, 20), (20, 20)]
    assert_codes_right(codes)


class FourCodes(Tokenizer):
    """A frame's code grid is its four pixels, plus an offset that stands for the weights."""

    def __init__(self, offset: int = 0, codes: int = 256):
        super().__init__()
        self.frame_shape, self.grid, self.num_codes = (1, 2, 2), (4,), codes
        self.register_buffer("offset", torch.tensor(offset))
        self.encoded = 0

    def _encode(self, frames: Tensor) -> Tensor:
        assert not self.training
        self.encoded += len(frames)
        return ((frames + 1) * 127.5).round().long().flatten(1) + self.offset

    def _forward(self, *_: Any) -> Reconstruction:
        raise NotImplementedError

    def expected_frames(self, *_: Any) -> Tensor:
        raise NotImplementedError

    def codebook(self) -> Tensor:
        raise NotImplementedError


def test_windows_of_codes_are_aligned_like_frames(store: EpisodeStore, tmp_path: Path) -> None:
    codes = encode_store(store, FourCodes(), tmp_path / "codes", batch=4)
    windows = Windows(codes, "all", 5)
    for segment in [windows.sample(200, torch.Generator().manual_seed(0)), windows.fixed(5, 3), *windows.cover(7)]:
        assert segment.frames is None and segment.codes is not None and segment.codes.dtype == torch.int64
        check_alignment(segment, segment.codes)
    same = Windows(store, "all", 5).sample(200, torch.Generator().manual_seed(0))
    drawn = windows.sample(200, torch.Generator().manual_seed(0))
    assert same.frames is not None and drawn.codes is not None
    assert torch.equal(same.frames.flatten(2).long(), drawn.codes)


def assert_codes_right(codes: CodeStore, offset: int = 0) -> None:
    for index in range(len(codes.store)):
        frames = codes.store.episode(index).frames
        np.testing.assert_array_equal(codes.episode(index), frames.reshape(len(frames), 4).astype(int) + offset)


def test_codes_are_computed_once_and_only_for_what_is_new(store: EpisodeStore, tmp_path: Path) -> None:
    folder = tmp_path / "codes"
    tokenizer = FourCodes().train()
    calls: list[tuple[int, int]] = []
    codes = encode_store(store, tokenizer, folder, batch=4, progress=lambda done, total: calls.append((done, total)))
    assert calls[0] == (4, 23) and calls[-1] == (23, 23) and tokenizer.encoded == 23
    assert codes.codes.dtype == np.uint16 and codes.codes.shape[1:] == (4,) and tokenizer.training
    assert_codes_right(codes)

    assert_codes_right(encode_store(EpisodeStore.open(store.path), tokenizer, folder))
    assert tokenizer.encoded == 23

    grown = extend(store.path, [5, 2])
    assert_codes_right(encode_store(grown, tokenizer, folder))
    assert tokenizer.encoded == 23 + 6 + 3


def test_codes_follow_an_episode_that_was_set_aside(store: EpisodeStore, tmp_path: Path) -> None:
    tokenizer = FourCodes()
    encode_store(store, tokenizer, tmp_path)
    with open(store.path / "shard-00000.frames", "r+b") as file:
        file.write(b"\xff")
    assert len(store.verify()) == 1
    assert_codes_right(encode_store(store, tokenizer, tmp_path))
    assert tokenizer.encoded == 23


def test_codes_of_another_tokenizer_are_computed_again(store: EpisodeStore, tmp_path: Path) -> None:
    encode_store(store, FourCodes(), tmp_path)
    assert_codes_right(encode_store(store, FourCodes(offset=1), tmp_path), offset=1)
    large = encode_store(store, FourCodes(offset=70_000, codes=100_000), tmp_path)
    assert large.codes.dtype == np.uint32
    assert_codes_right(large, offset=70_000)


@pytest.mark.parametrize(
    "damage", ["cut", "key", "garbage", "missing", "foreign", "flipped", "header", "order", "no check"]
)
def test_a_damaged_cache_is_built_again(store: EpisodeStore, tmp_path: Path, damage: str) -> None:
    encode_store(store, FourCodes(), tmp_path)
    codes, key = tmp_path / "codes.npy", tmp_path / "codes.json"
    if damage == "cut":
        codes.write_bytes(codes.read_bytes()[:-10])
    elif damage == "key":
        key.write_text("{")
    elif damage == "garbage":
        codes.write_bytes(b"not an array")
    elif damage == "missing":
        codes.unlink()
    elif damage == "flipped":  # a code that the vocabulary does not have, perhaps
        codes.write_bytes(codes.read_bytes()[:-10] + b"\xff" * 10)
    elif damage == "header":
        codes.write_bytes(codes.read_bytes().replace(b")", b"("))
    elif damage == "order":  # of the bytes of a number
        codes.write_bytes(codes.read_bytes().replace(b"<u2", b">u2"))
    elif damage == "no check":
        key.write_text(key.read_text().replace('"check"', '"crc"'))
    else:
        key.write_text(json.dumps([1, 2]))
    tokenizer = FourCodes()
    assert_codes_right(encode_store(store, tokenizer, tmp_path))
    assert tokenizer.encoded == 23


def paid(path: Path, rewards: list[list[float]]) -> EpisodeStore:
    """Episodes with these rewards; every frame shows its episode and its place."""
    with EpisodeStore.writer(path, SPEC) as store:
        for episode, row in enumerate(rewards):
            known = numbered(episode, len(row))
            store.append(dataclasses.replace(known, rewards=np.array([0, *row], np.float32)))
    return EpisodeStore.open(path)


def test_windows_from_which_a_rare_reward_is_near(tmp_path: Path) -> None:
    costs = [-0.1] * 40
    store = paid(tmp_path / "data", [costs, [*costs, -5.0, *costs, 4.0], [-0.1, 5.0], costs])
    windows = Windows(store, "all", length=3, lead=1, rewarded=0.5)
    batch = windows.sample(20_000, torch.Generator().manual_seed(0))
    assert batch.frames is not None
    check_alignment_but_rewards(batch)
    place, episode = batch.frames[:, :, 0, 0, 1].long(), batch.frames[:, :, 0, 0, 0].long()
    target, of = place[:, 1:][batch.valid[:, 1:]], episode[:, 1:][batch.valid[:, 1:]]
    # Near are places 21 to 41 (of −5) and 62 to 82 (of 4) of the second episode, and all of the third.
    near = ((of == 1) & (((target >= 21) & (target <= 41)) | ((target >= 62) & (target <= 82)))) | (of == 2)
    counts = torch.bincount(target[near & (of == 1)], minlength=83)
    inner = counts[[*range(22, 41), *range(63, 82)]].double()  # the outermost are at one place of a window alone
    assert inner.min() > 0.75 * inner.mean() and inner.max() < 1.25 * inner.mean()
    plain = Windows(store, "all", length=3, lead=1).sample(20_000, torch.Generator().manual_seed(0))
    assert near.double().mean() > 0.55 and (~near).any()
    assert plain.frames is not None
    assert (plain.frames[:, 1:, 0, 0, 0].long() == 2).double().mean() < 0.1

    same = Windows(store, "all", length=3, lead=1, rewarded=0.0).sample(50, torch.Generator().manual_seed(3))
    other = Windows(store, "all", length=3, lead=1).sample(50, torch.Generator().manual_seed(3))
    assert torch.equal(same.actions, other.actions)


def check_alignment_but_rewards(batch: Segment) -> None:
    assert batch.frames is not None
    pictures = batch.frames.flatten(2)[..., [0, 1, 2, 3]]
    places = pictures[..., 1].float()
    check_alignment(dataclasses.replace(batch, rewards=places), pictures)


def test_where_all_rewards_are_alike_no_window_is_special(tmp_path: Path) -> None:
    store = paid(tmp_path / "data", [[1.0] * 9, [1.0] * 4])
    drawn = [
        Windows(store, "all", 2, 1, rewarded=share).sample(40, torch.Generator().manual_seed(0)) for share in (0, 1)
    ]
    assert torch.equal(drawn[0].actions, drawn[1].actions)
