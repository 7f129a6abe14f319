"""The dream command, from the line a user types to the files, on a world that is known exactly."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from moving_square import SPEC, World, record
from PIL import Image

from worldmodel import dream, media
from worldmodel.data.store import EpisodeStore
from worldmodel.dreaming.videos import CANDIDATES, random_place
from worldmodel.errors import RunError
from worldmodel.media import Strip
from worldmodel.types import Episode, Spec
from worldmodel.world import Dream, WorldModel

EPISODES = 12
HELD_OUT = 2  # the one that is held out of them


class TracedWorld(World):
    """The known world behind the whole interface; keeps what it was asked."""

    def __init__(self, obedience: float):
        super().__init__(obedience)
        self.asked: list[dict[str, Any]] = []

    def imagine(self, frames: torch.Tensor, actions: torch.Tensor, **options: Any) -> Dream:
        self.asked.append({"frames": frames, "actions": actions, **options})
        known = {name: options[name] for name in ("seen_actions", "samples", "generator")}
        dreamt = super().imagine(frames, actions, **known)
        return dataclasses.replace(dreamt, passes=torch.full(actions.shape, 4.5))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("square") / "data"
    with EpisodeStore.writer(folder, SPEC) as store:
        for seed in range(EPISODES):
            store.append(record(seed))
    return folder


@pytest.fixture
def run(tmp_path: Path, data: Path) -> Path:
    """A run that was trained on the data, as far as this command looks into it."""
    folder = tmp_path / "runs" / "square-1"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(f"data: {data}\ntokenizer: {{}}\nprior: {{}}\ntraining: {{}}\n")
    (folder / "spec.json").write_text(SPEC.to_json())
    (folder / "prior.safetensors").touch()
    return folder


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> TracedWorld:
    world = TracedWorld(obedience=0.7)
    monkeypatch.setattr(WorldModel, "load", lambda run, device: world)
    return world


@pytest.fixture
def strips(monkeypatch: pytest.MonkeyPatch) -> list[list[Strip]]:
    """The strips of every file that would be written; nothing is, which is quick."""
    saved: list[list[Strip]] = []
    monkeypatch.setattr(media, "save", lambda path, strips, *rest: saved.append(strips))
    return saved


def call(run: Path, *flags: str) -> int:
    return dream.main([*flags, f"runs={run.parent}"])


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_dream_is_written_three_times_and_announced(
    run: Path, world: TracedWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(run, "--actions", "right*3,left", "--seed", "3", "--start", f"{HELD_OUT}:5") == 0
    name = f"right3-left-ep{HELD_OUT}.5-h4-seed3"
    assert files(run / "dreams") == [f"{name}.gif", f"{name}.mp4", f"{name}.png"]
    output = capsys.readouterr().out
    assert all(f"{run / 'dreams' / name}{suffix}" in output for suffix in (".mp4", ".gif", ".png"))
    assert f"episode {HELD_OUT} (held out), frames 5 to 8 seen" in output
    assert "4 frames in" in output and "frames/s" in output and "4.5 head passes a frame" in output
    with Image.open(run / "dreams" / f"{name}.gif") as gif:
        assert gif.n_frames == 4 + 4 and gif.info["duration"] == 100


def test_flags_are_passed_to_the_world(run: Path, world: TracedWorld, strips: list[list[Strip]]) -> None:
    flags = "--actions left --horizon 3 --start 4:6 --context 5 --samples 2 --temperature 0.5 --top-k 7"
    assert call(run, *flags.split(), "--sampler", "ancestral", "--seed", "11") == 0
    (asked,), episode = world.asked, record(4)
    assert np.array_equal(asked["frames"], episode.frames[6:11])
    assert np.array_equal(asked["seen_actions"], episode.actions[6:11])
    assert asked["actions"].tolist() == [1, 1, 1] and asked["samples"] == 2
    assert (asked["temperature"], asked["top_k"], asked["sampler"]) == (0.5, 7, "ancestral")
    assert asked["generator"].initial_seed() == 11
    assert [strip.caption for strip in strips[0]] == ["dream 1", "dream 2"]


def test_the_mean_of_dreams_is_one_strip(
    run: Path, world: TracedWorld, strips: list[list[Strip]], capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--actions", "left*6", "--start", "4:6", "--mean-of", "5")
    assert call(run, *flags) == 0
    (asked,), (strip,) = world.asked, strips[0]
    again = asked["generator"].manual_seed(0)
    dreams = World(0.7).imagine(
        asked["frames"], asked["actions"], seen_actions=asked["seen_actions"], samples=5, generator=again
    )
    mean = dreams.frames.numpy().astype(np.float64).mean(0)  # (6, C, H, W) of five different dreams
    assert dreams.frames.float().std(0).amax() > 0
    assert np.abs(strip.frames[4:] - mean.transpose(0, 2, 3, 1)).max() <= 0.5
    assert strip.caption == "mean of 5 dreams" and "5 × 6 frames in" in capsys.readouterr().out


def test_a_replay_stands_beside_the_truth_and_the_reconstruction(
    run: Path, world: TracedWorld, strips: list[list[Strip]], capsys: pytest.CaptureFixture[str]
) -> None:
    world.obedience = 1.0  # then the dream is the truth
    assert call(run, "--replay", "4:10", "--horizon", "30") == 0
    recorded = record(4)
    wanted = recorded.frames[10 : 10 + 4 + 30].transpose(0, 2, 3, 1)
    assert [strip.caption for strip in strips[0]] == ["truth", "reconstruction", "dream"]
    for strip in strips[0]:
        assert np.array_equal(strip.frames, wanted)
        assert strip.actions == (None, *(SPEC.action_names[a] for a in recorded.actions[11 : 10 + 4 + 30]))
        assert strip.seen == 4
    assert [strip.dreamt for strip in strips[0]] == [False, False, True]
    output = capsys.readouterr().out
    assert "episode 4 (training data), frames 10 to 13 seen" in output
    assert "PSNR      58.9 at 1, 58.9 at 5, 58.9 at 10, 58.9 at 15, 58.9 at 30 dB" in output


def test_psnr_falls_where_the_dream_leaves_the_truth(
    run: Path, world: TracedWorld, strips: list[list[Strip]], capsys: pytest.CaptureFixture[str]
) -> None:
    world.obedience = 0.0
    assert call(run, "--replay", "4", "--horizon", "10", "--samples", "16") == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("PSNR"))
    assert float(line.split(" at 10 dB")[0].split()[-1]) < 50
    assert len(strips[0]) == 2 + 16


def test_a_replay_ends_with_its_episode_and_a_note(
    run: Path, world: TracedWorld, strips: list[list[Strip]], capsys: pytest.CaptureFixture[str]
) -> None:
    left = len(record(4).frames) - 4 - 40
    assert call(run, "--replay", "4:40", "--horizon", "500") == 0
    assert len(strips[0][0]) == 4 + left
    assert f"ends {left} steps on; --horizon 500" in capsys.readouterr().out


def test_without_a_choice_a_held_out_episode_is_replayed(
    run: Path, world: TracedWorld, strips: list[list[Strip]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(run, "--horizon", "20") == 0
    assert f"episode {HELD_OUT} (held out)" in capsys.readouterr().out
    assert len(strips[0]) == 3 and len(strips[0][0]) == 4 + 20


def test_the_same_seed_gives_the_same_video(run: Path, world: TracedWorld, tmp_path: Path) -> None:
    def video(name: str, seed: int) -> bytes:
        path = tmp_path / name
        assert call(run, "--actions", "left,right", "--seed", str(seed), "--output", str(path)) == 0
        return path.read_bytes()

    assert video("first.mp4", 3) == video("second.mp4", 3)
    assert video("first.gif", 3) == video("second.gif", 3)
    assert video("first.gif", 3) != video("third.gif", 4)


def test_the_prior_determines_how_many_frames_are_seen(
    run: Path, world: TracedWorld, strips: list[list[Strip]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for context, flags, seen in ((6, "", 6), (6, "--context 2", 2), (0, "", 1)):
        monkeypatch.setattr(world.prior, "context", context, raising=False)
        assert call(run, "--actions", "left", *flags.split()) == 0
        assert len(world.asked[-1]["frames"]) == strips[-1][0].seen == seen


@pytest.mark.parametrize(("start", "flags", "first"), [(6, "", 0), (9, "", 2), (9, "--context 4", 9)])
def test_a_memory_also_sees_the_frames_before_the_start(
    start: int, flags: str, first: int, run: Path, world: TracedWorld, strips: list[list[Strip]],
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(type(world.prior), "lead", 11)
    assert call(run, "--replay", f"4:{start}", "--horizon", "2", *flags.split()) == 0
    asked, recorded = world.asked[-1], record(4)
    assert np.array_equal(asked["frames"], recorded.frames[first : start + 4])
    assert np.array_equal(asked["seen_actions"], recorded.actions[first : start + 4])
    assert np.array_equal(strips[-1][0].frames, recorded.frames[start : start + 6].transpose(0, 2, 3, 1))
    memory = f"; {start - first} before them in the memory\n" if first < start else " seen\n"
    assert f"frames {start} to {start + 3} seen{memory}".replace("seen seen", "seen") in capsys.readouterr().out


def test_output_is_one_file_or_the_stem_of_three_or_a_folder(run: Path, world: TracedWorld, tmp_path: Path) -> None:
    for output in ("one/dream.png", "three/dream"):
        assert call(run, "--actions", "left*2", "--output", str(tmp_path / output)) == 0
    (tmp_path / "folder").mkdir()
    assert call(run, "--actions", "left*2", "--output", str(tmp_path / "folder"), "--start", "9", "--seed", "0") == 0
    assert files(tmp_path / "one") == ["dream.png"]
    assert files(tmp_path / "three") == ["dream.gif", "dream.mp4", "dream.png"]
    assert files(tmp_path / "folder") == [f"left2-ep9.0-h2-seed0{suffix}" for suffix in (".gif", ".mp4", ".png")]
    assert not (run / "dreams").exists()


LAST = len(record(4).frames) - 4  # the last frame of episode 4 at which four frames can be seen


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--actions forwards", "unknown action 'forwards'; choose noop, left, right"),
        ("--actions left*0", "count '0'"),
        ("--actions left --horizon 0", "--horizon is 0; it must be at least 1"),
        ("--replay 4 --horizon -3", "--horizon is -3; it must be at least 1"),
        ("--replay 99", f"episode 99 is not in {{data}}; choose from 0 to {EPISODES - 1}"),
        ("--replay four", "'four' is no place in the data; write EPISODE or EPISODE:FRAME"),
        (f"--replay 4:{LAST}", f"choose from 0 to {LAST - 1}"),
        (f"--actions left --start 4:{LAST + 1}", f"choose from 0 to {LAST}"),
        ("--replay 4 --context 900", "too few for --context 900"),
        ("--replay 4 --context 0", "--context is 0; it must be at least 1"),
        ("--context 900", "no episode in {data} has 901 frames"),
        ("--replay 4 --samples 0", "--samples is 0; it must be at least 1"),
        ("--replay 4 --samples 5000", "--samples is 5000; it must be at most 1000"),
        ("--replay 4 --temperature nan", "--temperature is nan; it must be a finite number"),
        ("--replay 4 --temperature inf", "--temperature is inf; it must be a finite number"),
        ("--replay 4 --temperature -1", "--temperature is -1; it must be at least 0"),
        ("--replay 4 --top-k 0", "--top-k is 0; it must be at least 1"),
        ("--replay 4 --sampler fast", "choose from"),
        ("--replay 4 --start 3", "--start 3 goes with --actions"),
        ("--replay 4 --mean-of 4 --temperature 0", "--mean-of 4: all dreams at temperature 0 are equal"),
        ("--replay 4 --mean-of 5000", "--mean-of is 5000; it must be at most 1000"),
        ("--replay 4 --mean-of 4 --samples 2", "--mean-of 4 shows one mean, --samples 2 dreams: give one of them"),
        ("--replay 4 --seed -1", "--seed is -1; it must be at least 0"),
        ("--replay 4 --output dream.avi", "must end in .mp4, .gif, .png"),
        ("--replay 4 run=other", "unknown run 'other'"),
        ("--replay 4 data=/no/such/folder", "no data at /no/such/folder"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_two(
    run: Path, data: Path, world: TracedWorld, capsys: pytest.CaptureFixture[str], flags: str, message: str
) -> None:
    assert call(run, *flags.split()) == 2
    caught = capsys.readouterr()
    assert message.format(data=data) in caught.err and caught.err.count("\n") == 1 and caught.out == ""
    assert not (run / "dreams").exists()


def test_a_damaged_episode_is_set_aside_for_another(
    run: Path, data: Path, world: TracedWorld, strips: list[list[Strip]], tmp_path: Path, capsys: Any, caplog: Any
) -> None:
    copy = shutil.copytree(data, tmp_path / "copy")
    store = EpisodeStore.open(copy)
    with open(copy / "shard-00000.frames", "r+b") as file:
        for index in (HELD_OUT, 4):
            file.seek(store.entries[index].offset * 3 * 16 * 24)
            file.write(b"garbage")
    assert call(run, f"data={copy}") == 0  # a held-out episode, as long as there is one that is sound
    assert f"episode {HELD_OUT} in" in caplog.text and caplog.text.count("left out") == 1
    assert len(strips) == 3 and "training data" in capsys.readouterr().out
    assert call(run, f"data={copy}", "--replay", "3") == 2  # the fourth, now that another has gone
    assert "episode 3 is damaged and was set aside; choose another" in capsys.readouterr().err
    assert [entry.episode for entry in EpisodeStore.open(copy).entries] == [
        n for n in range(EPISODES) if n not in (HELD_OUT, 4)
    ]


def test_data_of_another_kind_is_refused(
    run: Path, world: TracedWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Spec("test:other", SPEC.frame_shape, ("noop", "up", "down"), 10.0)
    with EpisodeStore.writer(tmp_path / "other", other) as store:
        store.append(record(0))
    assert call(run, "--replay", "0", f"data={tmp_path / 'other'}") == 2
    assert "other frames or actions" in capsys.readouterr().err


def test_a_run_that_cannot_be_loaded_is_named(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def damaged(folder: Path, device: str) -> None:
        raise RunError(f"{folder} is damaged")

    monkeypatch.setattr(WorldModel, "load", damaged)
    assert call(run, "--actions", "left") == 2
    assert str(run) in capsys.readouterr().err


def cut(episode: Episode, steps: int) -> Episode:
    return Episode(*(part[: steps + 1] for part in (episode.frames, episode.actions, episode.rewards)), False, True)


def test_a_random_place_has_something_to_see(tmp_path: Path) -> None:
    with EpisodeStore.writer(tmp_path / "walls", SPEC) as writer:
        for seed in range(12):
            episode = record(seed)
            episode.frames[: episode.steps * 3 // 4] = 90  # bare walls for three quarters of the time
            writer.append(episode)
    store = EpisodeStore.open(tmp_path / "walls")
    rng = np.random.default_rng(0)
    places = [random_place(store, 2, 0, 0, rng) for _ in range(40)]
    bare = [not np.ptp(store.episode(place.episode).frames[place.first + 1]) for place in places]
    assert np.mean(bare) < 0.3  # 0.75 ** 8 = 0.1
    assert len(set(places)) > 20


def test_a_random_place_is_held_out_where_one_is_long_enough(tmp_path: Path) -> None:
    with EpisodeStore.writer(tmp_path / "data", SPEC) as store:
        for index in range(11):
            store.append(cut(record(20 + index), 12 if index == HELD_OUT else 40))
    assert store.split("held_out").tolist() == [HELD_OUT]
    rng = np.random.default_rng(0)
    # The held-out one has 9 steps behind its first 4 frames: fewer than wanted are better than none.
    for wanted in (5, 20):
        places = [random_place(store, 4, 1, wanted, rng) for _ in range(50)]
        assert {place.episode for place in places} == {HELD_OUT}
        firsts = {place.first for place in places}  # not all that are possible: those with something to see come first
        assert firsts <= set(range(12 + 1 - 4 - (wanted if wanted == 5 else 1) + 1)) and len(firsts) > 1
    assert all(random_place(store, 14, 1, 1, rng).episode != HELD_OUT for _ in range(20))


def test_a_dream_starts_where_there_are_colours_not_contrasts(tmp_path: Path) -> None:
    """One frame of a held-out episode has many colours; all others are black and white, of far greater variance."""
    frames = np.zeros((40, 3, 16, 16), np.uint8)
    frames[:, :, :8] = 255
    frames[20] = np.arange(256, dtype=np.uint8).reshape(16, 16) // 2
    with EpisodeStore.writer(tmp_path / "data", Spec("x", (3, 16, 16), ("a",), 1.0)) as store:
        store.append(Episode(frames, np.zeros(40, np.int64), np.zeros(40, np.float32), False, True), held_out=True)
    places = [random_place(store, 1, 0, 0, np.random.default_rng(seed)).first for seed in range(40)]
    drawn = [{int(place) for place in looked_at(seed)} for seed in range(40)]
    assert all((20 in looks) == (place == 20) for looks, place in zip(drawn, places, strict=True))
    assert 0 < sum(place == 20 for place in places) < 40


def test_a_replay_starts_where_the_colours_change_not_where_a_picture_only_moves(tmp_path: Path) -> None:
    """One held-out episode shifts a bright picture; another of less contrast goes from one picture to others."""
    noise = np.random.default_rng(0).integers(0, 256, (4, 3, 16, 16)).astype(np.uint8)
    shifted = np.stack([np.roll(noise[0], t, axis=2) for t in range(40)])
    changing = (noise // 16 + 64 * np.arange(4, dtype=np.uint8)[:, None, None, None]).repeat(10, axis=0)
    with EpisodeStore.writer(tmp_path / "data", Spec("x", (3, 16, 16), ("a",), 1.0)) as store:
        for frames in (shifted, changing):
            store.append(Episode(frames, np.zeros(40, np.int64), np.zeros(40, np.float32), False, True), held_out=True)
    starts = [random_place(store, 4, 1, 30, np.random.default_rng(seed)) for seed in range(20)]
    assert {place.episode for place in starts} == {1}
    stills = {random_place(store, 4, 0, 0, np.random.default_rng(seed)).episode for seed in range(20)}
    assert stills == {0}  # without recorded steps, only what is to be seen at the start counts


def test_every_held_out_episode_is_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with EpisodeStore.writer(tmp_path / "data", SPEC) as store:
        for seed in range(CANDIDATES // 2):
            store.append(record(seed), held_out=True)
    read_frames, read = store.read, []

    def traced(index: int, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        read.append(index)
        return read_frames(index, first, last)

    monkeypatch.setattr(store, "read", traced)
    random_place(store, 4, 1, 10, np.random.default_rng(0))
    assert np.bincount(read).tolist() == [2] * (CANDIDATES // 2)


def looked_at(seed: int) -> np.ndarray:
    """The frames between which the place above is chosen."""
    rng = np.random.default_rng(seed)
    rng.choice(np.array([0]), CANDIDATES)
    return np.array([rng.integers(40) for _ in range(CANDIDATES)])
