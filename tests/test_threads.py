"""The number of threads follows the cores that other processes leave free."""

from __future__ import annotations

import itertools
import os

import pytest
import torch
from tiny import SPEC, tiny_prior, tiny_tokenizer

from worldmodel.util import threads
from worldmodel.util.threads import FreeCores, busy_seconds, free_threads
from worldmodel.world import WorldModel


@pytest.mark.parametrize(
    ("cores", "others", "most", "expected"),
    [(2, 0.0, 2, 2), (2, 0.2, 2, 2), (2, 1.0, 2, 1), (2, 1.9, 2, 1), (64, 32.0, 64, 32), (64, 0.0, 32, 32)],
)
def test_threads_are_the_cores_that_are_free(cores: int, others: float, most: int, expected: int) -> None:
    assert free_threads(cores, others, most) == expected


def test_threads_follow_the_load_and_the_choice_of_the_user_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = [2]
    monkeypatch.setattr(torch, "get_num_threads", lambda: chosen[-1])
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1}, raising=False)
    monkeypatch.setattr(threads.time, "process_time", lambda: 0.0)
    for name in threads.CHOSEN_BY:
        monkeypatch.delenv(name, raising=False)
    now, load, busy = itertools.count(), [0.0], [0.0]

    def used(cores: set[int]) -> float:
        busy[0] += load[0]
        return busy[0]

    cores = FreeCores(clock=lambda: float(next(now)), busy=used)
    for load[0], expected in ((0.0, 2), (1.0, 1), (0.0, 2)):
        for _ in range(4):
            cores.adjust()
        assert chosen[-1] == expected
    assert chosen == [2, 1, 2]
    chosen.append(4)  # by the user
    cores.adjust()
    assert not cores.enabled
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert not FreeCores().enabled


def test_dreams_are_the_same_with_any_number_of_threads() -> None:
    world = WorldModel(SPEC, tiny_tokenizer(), tiny_prior("conv_pose"))
    frames = torch.randint(256, (16, 4, *SPEC.frame_shape), dtype=torch.uint8)
    before, dreams = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            dreams.append(world.imagine(frames, [1, 2, 0, 1], generator=torch.Generator().manual_seed(0)))
    finally:
        torch.set_num_threads(before)
    first, second = dreams
    assert torch.equal(first.codes, second.codes) and torch.equal(first.rewards, second.rewards)
    assert torch.equal(first.frames, second.frames)


@pytest.mark.skipif(not os.path.exists("/proc/stat"), reason="the use of cores is reported on Linux only")
def test_the_use_of_cores_grows() -> None:
    assert busy_seconds(os.sched_getaffinity(0)) > 0 == busy_seconds(set())
