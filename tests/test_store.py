"""The episode store: what is written comes back, and no crash, damage or full disk costs more than it must."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from worldmodel.data import records
from worldmodel.data.records import Item
from worldmodel.data.store import EpisodeStore
from worldmodel.errors import DataError
from worldmodel.types import Episode, Spec
from worldmodel.util.files import append_line, take_lock

SPEC = Spec("test", (3, 8, 8), ("noop", "left", "right"), 10.0)


def make_episode(seed: int, length: int = 7, shape: tuple[int, ...] = SPEC.frame_shape, **flags: bool) -> Episode:
    rng = np.random.default_rng(seed)
    return Episode.from_steps(
        frames=rng.integers(0, 256, (length + 1, *shape), np.uint8),
        actions=rng.integers(0, 3, length),
        rewards=rng.normal(size=length).astype(np.float32),
        terminated=flags.get("terminated", False),
        truncated=flags.get("truncated", False),
    )


def fill(path: Path, count: int, spec: Spec = SPEC) -> list[Episode]:
    episodes = [make_episode(seed, 3 + seed % 5, spec.frame_shape, terminated=seed % 2 == 0) for seed in range(count)]
    with EpisodeStore.writer(path, spec) as store:
        for episode in episodes:
            store.append(episode)
    return episodes


def assert_same(got: Episode, wanted: Episode) -> None:
    for field in dataclasses.fields(Episode):
        np.testing.assert_array_equal(getattr(got, field.name), getattr(wanted, field.name), err_msg=field.name)


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 5, 9), (2, 33)])
def test_what_is_written_comes_back(tmp_path: Path, shape: tuple[int, ...]) -> None:
    spec = dataclasses.replace(SPEC, frame_shape=shape, env_kwargs={"a": [1, None]})
    episodes = fill(tmp_path, 4, spec)
    store = EpisodeStore.open(tmp_path)
    assert store.spec == spec
    assert store.frame_counts.tolist() == [len(episode.frames) for episode in episodes]
    for index, episode in enumerate(episodes):
        assert_same(store.episode(index), episode)
    assert store.verify() == []


def test_appending_again_goes_on_where_it_stopped_and_over_several_shards(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(records, "SHARD_BYTES", 3000)  # 15 frames of 192 bytes
    episodes = fill(tmp_path, 3)
    with EpisodeStore.writer(tmp_path, SPEC) as store:
        episodes.append(make_episode(50, 40))  # larger than a shard: gets one for itself
        episodes.append(make_episode(51, 2))
        assert [store.append(episode) for episode in episodes[3:]] == [3, 4]
        assert_same(store.episode(4), episodes[4])
    store = EpisodeStore.open(tmp_path)
    assert len({entry.shard for entry in store.entries}) == 3
    for index, episode in enumerate(episodes):
        assert_same(store.episode(index), episode)


def held_out(path: Path) -> set[int]:
    """Checksums of the episodes that are held out: they name an episode in whatever store."""
    store = EpisodeStore.open(path)
    return {store.entries[index].crc for index in store.split("held_out")}


def test_about_one_episode_in_ten_is_held_out(tmp_path: Path) -> None:
    fill(tmp_path, 400)
    store = EpisodeStore.open(tmp_path)
    chosen = store.split("held_out")
    assert 25 <= len(chosen) <= 55  # 40 on the average, one sigma is 6
    assert sorted([*store.split("train"), *chosen]) == list(range(400)) == store.split("all").tolist()
    assert len(set(chosen % 10)) > 5  # whenever they came
    with pytest.raises(DataError, match="train, held_out or all"):
        store.split("test")  # type: ignore[arg-type]


def test_the_split_does_not_depend_on_the_order_or_the_store(tmp_path: Path) -> None:
    episodes = fill(tmp_path / "one", 60)
    with EpisodeStore.writer(tmp_path / "other", SPEC) as store:
        for episode in [*(make_episode(seed) for seed in range(1000, 1040)), *reversed(episodes)]:
            store.append(episode)
    crcs = {entry.crc for entry in EpisodeStore.open(tmp_path / "one").entries}
    chosen = {crc for crc in crcs if crc % 10 == 0}
    assert chosen and chosen == held_out(tmp_path / "other") & crcs
    assert chosen <= held_out(tmp_path / "one") and len(held_out(tmp_path / "one") - chosen) <= 1  # the third


@pytest.mark.parametrize("first", range(0, 40, 4))
def test_a_store_of_three_episodes_has_one_held_out_and_keeps_it(tmp_path: Path, first: int) -> None:
    def append(*seeds: int) -> set[int]:
        with EpisodeStore.writer(tmp_path, SPEC) as store:
            for seed in seeds:
                store.append(make_episode(seed))
        return held_out(tmp_path)

    few = append(first, first + 1, first + 2)
    assert few
    assert append(*range(500, 530)) >= few


def test_damage_moves_no_other_episode(tmp_path: Path) -> None:
    episodes = fill(tmp_path, 40)
    before = held_out(tmp_path)
    with open(tmp_path / "shard-00000.frames", "r+b") as file:
        file.seek(len(episodes[0].frames) * 192)
        file.write(b"garbage")
    assert len(EpisodeStore.open(tmp_path).verify()) == 1
    assert held_out(tmp_path) == before


def test_an_older_store_keeps_every_tenth_held_out(tmp_path: Path) -> None:
    fill(tmp_path, 23)
    index = tmp_path / "index.jsonl"
    lines = [json.loads(line) for line in index.read_text().splitlines()]
    index.write_text(
        "".join(json.dumps({k: v for k, v in line.items() if k not in ("held_out", "check")}) + "\n" for line in lines)
    )
    assert EpisodeStore.open(tmp_path).split("held_out").tolist() == [9, 19]
    with EpisodeStore.writer(tmp_path, SPEC) as store:
        for seed in range(1000, 1040):
            store.append(make_episode(seed))
    store = EpisodeStore.open(tmp_path)
    chosen = store.split("held_out")
    assert chosen[chosen < 23].tolist() == [9, 19] and len(chosen) > 2
    assert all(store.entries[index].crc % 10 == 0 for index in chosen[2:])


def with_condition(episode: Episode, condition: int) -> Episode:
    episode.actions[0] = condition
    return episode


def make_image(seed: int, condition: int = -1) -> Episode:
    return with_condition(make_episode(seed, 0), condition)


def test_images_are_episodes_of_one_frame_under_a_condition(tmp_path: Path) -> None:
    images = [make_image(seed, seed % 4 - 1) for seed in range(8)]
    with EpisodeStore.writer(tmp_path, SPEC) as store:
        assert store.append(images[0]) == 0
        assert store.extend([Item(image) for image in images[1:]]) == range(1, 8)
        assert store.extend([]) == range(8, 8)
        store.append(with_condition(make_episode(9), 2))
    store = EpisodeStore.open(tmp_path)
    assert store.frame_counts.tolist() == [1] * 8 + [8] and (store.steps, store.frames) == (7, 16)
    for index, image in enumerate(images):
        assert_same(store.episode(index), image)
    assert_same(store.episode(8), with_condition(make_episode(9), 2))
    assert store.verify() == []


def test_a_batch_is_written_as_single_episodes_are(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(records, "SHARD_BYTES", 3000)  # 15 frames of 192 bytes
    items = [Item(make_episode(seed, seed % 6, terminated=True)) for seed in range(40)]
    items.insert(20, Item(make_episode(50, 40)))  # larger than a shard
    with EpisodeStore.writer(tmp_path / "single", SPEC) as one, EpisodeStore.writer(tmp_path / "batch", SPEC) as other:
        for item in items:
            one.append(item.episode)
        other.extend(items[:7])
        other.extend(items[7:])
    names = sorted(path.name for path in (tmp_path / "single").iterdir())
    assert len(names) > 10 and names == sorted(path.name for path in (tmp_path / "batch").iterdir())
    for name in names:
        assert (tmp_path / "single" / name).read_bytes() == (tmp_path / "batch" / name).read_bytes(), name


def test_a_source_may_say_what_is_held_out_and_how_it_is_called(tmp_path: Path) -> None:
    with EpisodeStore.writer(tmp_path, SPEC) as store:
        store.extend([Item(make_image(seed), seed in (4, 5), f"set/{seed}") for seed in range(30)])
        store.append(make_episode(99), held_out=True)
    store = EpisodeStore.open(tmp_path)
    assert store.split("held_out").tolist() == [4, 5, 30]
    assert store.keys == {f"set/{seed}" for seed in range(30)}
    with open(tmp_path / "shard-00000.frames", "r+b") as file:
        file.write(b"garbage")
    assert len(store.verify()) == 1
    assert "set/0" not in EpisodeStore.open(tmp_path).keys and store.split("held_out").tolist() == [3, 4, 29]


def test_an_older_store_has_neither_conditions_nor_keys(tmp_path: Path) -> None:
    fill(tmp_path, 3)
    index = tmp_path / "index.jsonl"
    assert "key" not in index.read_text()  # what is played is written as it ever was
    store = EpisodeStore.open(tmp_path)
    assert {store.episode(i).condition for i in range(3)} == {-1} and store.keys == set()


def test_a_batch_that_was_cut_short_keeps_what_is_indexed(tmp_path: Path) -> None:
    with EpisodeStore.writer(tmp_path, SPEC) as store:
        store.extend([Item(make_image(seed), None, str(seed)) for seed in range(10)])
    index = tmp_path / "index.jsonl"
    lines = index.read_bytes().splitlines(keepends=True)
    index.write_bytes(b"".join(lines[:6]) + lines[6][:20])  # killed in the middle of the last write
    with EpisodeStore.writer(tmp_path, SPEC) as store:
        assert store.keys == {str(seed) for seed in range(6)} and store.damaged == []
        store.extend([Item(make_image(seed), None, str(seed)) for seed in range(6, 10)])
    store = EpisodeStore.open(tmp_path)
    assert store.verify() == [] and len(store) == 10
    for seed in range(10):
        assert_same(store.episode(seed), make_image(seed))


def test_a_batch_with_one_misfit_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with EpisodeStore.writer(tmp_path, SPEC) as store:
        with pytest.raises(DataError, match=r"episode 1: the condition is 3; it is -1 for none, or in \[0, 3\)"):
            store.extend([Item(make_image(0)), Item(make_image(1, condition=3))])
        assert len(store) == 0
    assert not (tmp_path / "index.jsonl").exists() and not (tmp_path / "shard-00000.frames").exists()


def test_many_small_episodes_cost_few_calls_of_the_system(tmp_path: Path, monkeypatch) -> None:
    calls: list[str] = []
    for owner, name in ((os, "fsync"), (Path, "stat")):
        real = getattr(owner, name)
        monkeypatch.setattr(
            owner, name, lambda *a, _real=real, _name=name, **k: (calls.append(_name), _real(*a, **k))[1]
        )
    with EpisodeStore.writer(tmp_path, SPEC) as store:
        store.extend([Item(make_image(seed)) for seed in range(2000)])
    assert len(EpisodeStore.open(tmp_path)) == 2000 and EpisodeStore.open(tmp_path).verify() == []
    assert calls.count("fsync") == 2 and len(calls) < 40


def test_leftovers_of_a_crash_are_overwritten(tmp_path: Path) -> None:
    episodes = fill(tmp_path, 2)
    for name in ("shard-00000.frames", "shard-00000.steps"):
        with open(tmp_path / name, "ab") as file:
            file.write(b"\x07" * 1001)
    with open(tmp_path / "index.jsonl", "a") as file:
        file.write('{"episode": 2, "sha')
    assert len(EpisodeStore.open(tmp_path)) == 2
    episodes.append(make_episode(9, 1))
    with EpisodeStore.writer(tmp_path, SPEC) as store:
        store.append(episodes[-1])
    store = EpisodeStore.open(tmp_path)
    assert store.damaged == [] and store.verify() == []
    for index, episode in enumerate(episodes):
        assert_same(store.episode(index), episode)
    assert (tmp_path / "shard-00000.steps").stat().st_size == 8 * sum(len(episode.frames) for episode in episodes)


def test_a_writer_killed_at_any_moment_loses_nothing_indexed(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path[:0] = ['tests']\n"
        "from test_store import *\n"
        "with EpisodeStore.writer(sys.argv[1], SPEC) as store:\n"
        "    for seed in range(10**6):\n"
        "        store.append(make_episode(seed, 30))\n"
        "        print(seed, flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while (line := process.stdout.readline()) and int(line) < 20:
        pass
    time.sleep(0.003)
    process.send_signal(signal.SIGKILL)
    reported = [int(line), *(int(rest) for rest in process.stdout.read().splitlines())]
    process.wait()
    with EpisodeStore.writer(tmp_path, SPEC) as store:
        assert len(store) >= reported[-1] + 1
        assert store.verify() == []
        store.append(make_episode(len(store), 30))
        for index in (0, len(store) // 2, len(store) - 1):
            assert_same(store.episode(index), make_episode(index, 30))


def test_a_damaged_episode_is_named_set_aside_and_skipped(tmp_path: Path, caplog) -> None:
    episodes = fill(tmp_path, 3)
    with open(tmp_path / "shard-00000.frames", "r+b") as file:
        file.seek(len(episodes[0].frames) * 192 + 5)
        file.write(b"garbage")
    store = EpisodeStore.open(tmp_path)
    with pytest.raises(DataError, match=r"episode 1 in .*shard-00000\.frames is damaged"):
        store.episode(1)
    (report,) = store.verify()
    assert "episode 1" in report and report in caplog.text
    assert len(store) == 2
    assert_same(store.episode(1), episodes[2])
    again = EpisodeStore.open(tmp_path)
    assert [entry.episode for entry in again.entries] == [0, 2] and again.damaged == []
    assert json.loads((tmp_path / "damaged.jsonl").read_text())["episode"] == 1
    with EpisodeStore.writer(tmp_path, SPEC) as writer:
        assert writer.next_number == 3


def test_a_truncated_shard_costs_the_episodes_behind_the_cut(tmp_path: Path) -> None:
    episodes = fill(tmp_path, 4)
    os.truncate(tmp_path / "shard-00000.frames", 192 * (len(episodes[0].frames) + len(episodes[1].frames)) + 50)
    with EpisodeStore.writer(tmp_path, SPEC) as store:
        assert len(store) == 2 and len(store.damaged) == 2 and "episode 2" in store.damaged[0]
        store.append(make_episode(77))
        assert store.next_number == 5  # the numbers of lost episodes are not given again
    store = EpisodeStore.open(tmp_path)
    assert store.verify() == []
    assert_same(store.episode(1), episodes[1])
    assert_same(store.episode(2), make_episode(77))


def test_a_lost_shard_does_not_fill_the_screen(tmp_path: Path, caplog) -> None:
    fill(tmp_path, 14)
    (tmp_path / "shard-00000.steps").unlink()
    assert len(EpisodeStore.open(tmp_path).damaged) == 14
    assert len(caplog.messages) == 11 and "4 more; " in caplog.messages[-1] and "damaged.jsonl" in caplog.messages[-1]


def test_an_unreadable_index_line_is_set_aside(tmp_path: Path) -> None:
    episodes = fill(tmp_path, 3)
    lines = (tmp_path / "index.jsonl").read_text().splitlines()
    (tmp_path / "index.jsonl").write_text("\n".join([lines[0], "{}", lines[2], ""]))
    store = EpisodeStore.open(tmp_path)
    assert [entry.episode for entry in store.entries] == [0, 2] and len(store.damaged) == 1
    assert_same(store.episode(1), episodes[2])
    assert EpisodeStore.open(tmp_path).damaged == []


def test_setting_aside_keeps_what_another_process_appended_meanwhile(tmp_path: Path) -> None:
    episodes = fill(tmp_path, 2)
    reader = EpisodeStore.open(tmp_path)
    with EpisodeStore.writer(tmp_path, SPEC) as writer:
        writer.append(make_episode(5))
    with open(tmp_path / "shard-00000.frames", "r+b") as file:
        file.write(b"garbage")
    assert len(reader.verify()) == 1
    store = EpisodeStore.open(tmp_path)
    assert [entry.episode for entry in store.entries] == [1, 2]
    assert_same(store.episode(0), episodes[1])


def test_another_spec_is_refused_with_the_difference(tmp_path: Path) -> None:
    fill(tmp_path, 1)
    with pytest.raises(DataError, match=r"frame_shape \[3, 8, 8\], not \[3, 9, 8\]; choose another folder"):
        EpisodeStore.writer(tmp_path, dataclasses.replace(SPEC, frame_shape=(3, 9, 8)))
    EpisodeStore.writer(tmp_path, SPEC).close()  # the refusal gave the lock back


def test_an_error_before_the_first_episode_leaves_nothing_that_the_writer_made(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "shard-00000.frames").write_bytes(b"of a store without its index")
    (mine / "notes.txt").touch()
    for path in (tmp_path / "new" / "data", mine):
        with pytest.raises(ZeroDivisionError), EpisodeStore.writer(path, SPEC):
            assert (path / "spec.json").exists()
            raise ZeroDivisionError
    assert sorted(os.listdir(tmp_path)) == ["mine"]
    assert sorted(os.listdir(mine)) == ["notes.txt", "shard-00000.frames"]
    with pytest.raises(ZeroDivisionError), EpisodeStore.writer(tmp_path / "new", SPEC) as store:
        store.append(make_episode(0))
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), EpisodeStore.writer(tmp_path / "new", SPEC):
        raise ZeroDivisionError
    assert len(EpisodeStore.open(tmp_path / "new")) == 1


def test_a_full_disk_at_the_first_episode_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path, line: str) -> None:
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("worldmodel.data.records.append_line", fail)
    with pytest.raises(OSError, match="No space"), EpisodeStore.writer(tmp_path / "data", SPEC) as store:
        store.append(make_episode(0))
    monkeypatch.setattr("worldmodel.data.store.replace_text", lambda path, text: fail(path, text))
    with pytest.raises(OSError, match="No space"):
        EpisodeStore.writer(tmp_path / "data", SPEC)
    assert not (tmp_path / "data").exists()


def test_a_lock_that_its_holder_removed_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, real = tmp_path / "lock", fcntl.flock

    def removed_meanwhile(opened: Any, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", real)
        file.unlink()
        real(opened, how)

    monkeypatch.setattr(fcntl, "flock", removed_meanwhile)
    lock = take_lock(tmp_path)
    assert lock is not None and file.exists() and take_lock(tmp_path) is None
    lock.close()


def test_only_one_writer(tmp_path: Path) -> None:
    with EpisodeStore.writer(tmp_path, SPEC) as store:
        with pytest.raises(DataError, match="another process is writing"):
            EpisodeStore.writer(tmp_path, SPEC)
        store.append(make_episode(0))
        assert len(EpisodeStore.open(tmp_path)) == 1  # reading is always possible
    with pytest.raises(DataError, match="open for reading"):
        EpisodeStore.open(tmp_path).append(make_episode(1))


def test_missing_and_unreadable_stores(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no data at .*worldmodel\.collect"):
        EpisodeStore.open(tmp_path / "nothing")
    (tmp_path / "spec.json").write_text("{")
    with pytest.raises(DataError, match=r"spec\.json is damaged"):
        EpisodeStore.open(tmp_path)
    (tmp_path / "spec.json").write_text(SPEC.to_json().replace("8", "9", 1))
    with pytest.raises(DataError, match=r"spec\.json is damaged: .*wrong checksum.*; copy spec\.json from a run"):
        EpisodeStore.open(tmp_path)
    fill(tmp_path / "filled", 2)
    (tmp_path / "filled" / "spec.json").unlink()
    for use in (EpisodeStore.open, lambda path: EpisodeStore.writer(path, SPEC)):
        with pytest.raises(DataError, match=r"spec\.json is missing; copy spec\.json from a run"):
            use(tmp_path / "filled")
    with pytest.raises(DataError, match="no episode 0"):
        EpisodeStore.writer(tmp_path / "empty", SPEC).episode(0)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"frames": np.zeros((8, 3, 8, 9), np.uint8)}, r"needs uint8 frames \(T, 3, 8, 8\); got uint8 \(8, 3, 8, 9\)"),
        ({"frames": np.zeros((8, 3, 8, 8), np.float32)}, r"needs uint8 frames .*; got float32"),
        ({"frames": np.zeros((0, 3, 8, 8), np.uint8)}, r"got uint8 \(0, 3, 8, 8\)"),
        ({"frames": np.zeros((7, 3, 8, 8), np.uint8)}, r"actions of an episode are int64 \(8,\) .*; give \(7,\)"),
        (
            {"actions": np.zeros(7, int)},
            r"are int64 \(7,\) from 0 to 0; give \(8,\), for each frame the action that led to it",
        ),
        ({"actions": np.array([0, 0, 3, *[0] * 5])}, r"episode 0, step 2: the action is 3; actions are in \[0, 3\)"),
        ({"actions": np.full(8, -1)}, r"episode 0, step 1: the action is -1; actions are in \[0, 3\)"),
        ({"actions": np.zeros(8)}, r"actions of an episode are float64 \(8,\)"),
        ({"rewards": np.array([0, 0, np.nan, *[0] * 5])}, r"episode 0, step 2: the reward is nan; it must be a finite"),
        ({"rewards": np.array([0, 1e39, *[0] * 6])}, r"step 1: the reward is 1e\+39; it must be a finite number"),
        ({"rewards": np.array(["1"] * 8)}, r"rewards of an episode are <U1 \(8,\)"),
        ({"terminated": "no"}, r"episode 0: terminated is 'no'"),
        (
            {"rewards": np.zeros(9, np.float32)},
            r"are float32 \(9,\) from 0 to 0; give \(8,\), for each frame the reward",
        ),
        ({"actions": np.array([3, *[0] * 7])}, r"the condition is 3; it is -1 for none, or in \[0, 3\)"),
        ({"actions": np.array([-2, *[0] * 7])}, r"the condition is -2; it is -1 for none, or in \[0, 3\)"),
    ],
)
def test_an_episode_that_does_not_fit_is_refused(tmp_path: Path, broken: dict[str, Any], message: str) -> None:
    with EpisodeStore.writer(tmp_path, SPEC) as store:
        with pytest.raises(DataError, match=message):
            store.append(dataclasses.replace(make_episode(0), **broken))
        assert len(store) == 0


def test_a_full_disk_passes_the_error_on_and_loses_nothing(tmp_path: Path) -> None:
    """The limit on the size of a file stands in for the disk: the system really refuses the bytes."""
    fill(tmp_path, 2)
    before = (tmp_path / "index.jsonl").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with EpisodeStore.writer(tmp_path, SPEC) as store:
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2500, hard))
            with pytest.raises(OSError, match=r"too large: .*shard-00000\.frames"):
                store.append(make_episode(7, 9))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            signal.signal(signal.SIGXFSZ, ignored)
        assert (tmp_path / "index.jsonl").read_bytes() == before
        store.append(make_episode(8))
    store = EpisodeStore.open(tmp_path)
    assert len(store) == 3 and store.verify() == []
    assert_same(store.episode(2), make_episode(8))


def test_an_index_line_is_appended_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "index.jsonl"
    file.write_text("first\n")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
        with pytest.raises(OSError, match="too large"):
            append_line(file, "second")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert file.read_text() == "first\n"


def test_a_store_is_never_held_out_as_a_whole(tmp_path: Path) -> None:
    by_checksum = next(
        episode
        for episode in map(make_episode, range(1000))
        if records.checksum(episode.frames, records.to_records(episode)) % records.HELD_OUT_EVERY == 0
    )
    with EpisodeStore.writer(tmp_path / "same", SPEC) as store:
        store.append(by_checksum)
        assert store.require("train").tolist() == [0]
        with pytest.raises(DataError, match=r"of 1 episode at .*same, none is held out; .* source\.longest=…"):
            store.require("held_out")
        store.append(by_checksum)
        assert store.require("held_out").tolist() == [1]
    with EpisodeStore.writer(tmp_path / "stated", SPEC) as store:  # what a source states is kept
        with pytest.raises(DataError, match=r"stated holds no finished episode yet; python -m worldmodel"):
            store.require("train")
        store.append(by_checksum, held_out=True)
        with pytest.raises(DataError, match=r"of 1 episode at .*stated, all are held out; .* source\.longest=…"):
            store.require("train")


def test_a_wrong_byte_of_a_line_of_the_index_is_noticed(tmp_path: Path) -> None:
    """Also in what no other checksum covers: the split, the flags, the key and the names of the fields."""
    with EpisodeStore.writer(tmp_path, SPEC) as store:
        store.extend([Item(make_episode(seed), held_out=True, key=f"a/{seed}") for seed in range(3)])
    index = tmp_path / "index.jsonl"
    whole = index.read_text()
    for old, new in (
        ("a/1", "a/7"),
        ('"held_out"', '"helt_out"'),
        ('"check"', '"cheek"'),
        ('"episode": 1', '"episode": 5'),
    ):
        assert old in whole
        index.write_text(whole.replace(old, new))
        opened = EpisodeStore.open(tmp_path)
        assert opened.damaged and len(opened) < 3, old
        (tmp_path / "damaged.jsonl").unlink()


def test_episodes_behind_the_end_of_the_index_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill(tmp_path, 3)
    assert EpisodeStore.open(tmp_path).verify() == [] and not caplog.messages
    index = tmp_path / "index.jsonl"
    lines = index.read_text().splitlines(keepends=True)
    for kept in ("".join(lines[:2]), "".join(lines)[:-9], ""):
        index.write_text(kept)
        assert EpisodeStore.open(tmp_path).verify() == []
        assert "holds frames behind its last episode" in caplog.messages[-1]
        caplog.clear()
    index.write_text("".join(lines[:2]))
    with EpisodeStore.writer(tmp_path, SPEC) as store:
        assert EpisodeStore.open(tmp_path).verify() == [] and not caplog.messages  # another process may be writing them
        store.append(make_episode(9))
    assert EpisodeStore.open(tmp_path).verify() == [] and not caplog.messages


def test_a_specification_with_an_unknown_field_is_damaged() -> None:
    assert Spec.from_json(SPEC.to_json()) == SPEC
    with pytest.raises(DataError, match="unknown fields: crc33"):
        Spec.from_json(SPEC.to_json().replace("crc32", "crc33"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frame_shape": (8,)}, r"not a data specification: .*\(8,\), 3 actions"),
        ({"frame_shape": (0, 8, 8)}, "not a data specification"),
        ({"rate": float("nan")}, "not a data specification: .* nan frames a second"),
        ({"action_names": ()}, "not a data specification: .* 0 actions"),
        ({"action_names": ("a", "a")}, "two actions have the same name"),
        ({"env_kwargs": {"level": {1, 2}}}, "specification of test cannot be written as JSON: .* set is not JSON"),
    ],
)
def test_a_spec_that_is_none_is_refused_before_anything_is_written(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        EpisodeStore.writer(tmp_path / "data", dataclasses.replace(SPEC, **changes))
    assert not (tmp_path / "data").exists()
