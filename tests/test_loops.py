"""Loops: an exact dream is as good as the tokenizer, a prior without a memory gains nothing, one that copies gains."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from corridor import CHOOSE, ENDLESS
from corridor_run import TINY, save_run
from moving_square import MOVES, PLACES, SPEC, Prior, World, pictures, record
from omegaconf import OmegaConf
from tiny import random_segment, tiny_prior
from torch import Tensor

from worldmodel.collect import main as collect
from worldmodel.config.cli import compose_config
from worldmodel.data.store import EpisodeStore
from worldmodel.dreaming.actions import parse_script
from worldmodel.errors import ConfigError, DataError
from worldmodel.evaluate import main
from worldmodel.evaluation.figures import panels
from worldmodel.evaluation.loops import LoopSettings, Recorded, read_loop, revisit_bits, summary
from worldmodel.evaluation.loops import measure as measure_loop
from worldmodel.evaluation.report import rows
from worldmodel.evaluation.suite import Settings, evaluate
from worldmodel.runs.loops import loops_of, recorded_loops
from worldmodel.types import Episode

AWAY, TURN = "left*4,right*4", f"right*{PLACES}"
FREE = 9  # steps before the loop


def episode(script: str, seed: int) -> Episode:
    """A free walk of the square and a script."""
    generator = np.random.default_rng(seed)
    actions = np.concatenate([generator.integers(0, 3, FREE), parse_script(script, SPEC).play()])
    places = (int(generator.integers(PLACES)) + np.concatenate([[0], MOVES.numpy()[actions].cumsum()])) % PLACES
    return Episode.from_steps(pictures()[places].numpy(), actions, np.zeros(len(actions)), False, True)


def store_of(path: Path, script: str, count: int = 12) -> EpisodeStore:
    with EpisodeStore.writer(path, SPEC) as store:
        for seed in range(count):
            store.append(episode(script, seed))
    return EpisodeStore.open(path)


def test_a_loop_is_read_with_its_start_and_its_revisits(tmp_path: Path) -> None:
    away = read_loop(World(), store_of(tmp_path / "away", AWAY), AWAY)  # type: ignore[arg-type]
    assert (away.steps, away.start, list(away.revisits)) == (8, FREE, [14, 15, 16, 17])  # the second half
    assert torch.equal(away.frames[:, away.start], away.frames[:, -1])
    turn = read_loop(World(), store_of(tmp_path / "turn", TURN), TURN)  # type: ignore[arg-type]
    assert list(turn.revisits) == [19, 20, 21]  # the last quarter


def test_recordings_that_do_not_fit_are_named(tmp_path: Path) -> None:
    store = store_of(tmp_path / "away", AWAY)
    with pytest.raises(DataError, match=r"the episodes at .*away do not end with left\*2"):
        read_loop(World(), store, "left*2")  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"does not hold recordings of right\*30"):
        read_loop(World(), store, "right*30")  # type: ignore[arg-type]
    with EpisodeStore.writer(tmp_path / "uneven", SPEC) as uneven:
        for seed in range(3):
            uneven.append(record(seed))
    with pytest.raises(DataError, match="does not hold recordings"):
        read_loop(World(), EpisodeStore.open(tmp_path / "uneven"), AWAY)  # type: ignore[arg-type]


@pytest.mark.parametrize("script", [AWAY, TURN])
def test_an_exact_dream_is_as_good_as_the_tokenizer(script: str, tmp_path: Path) -> None:
    world: Any = World()
    recorded = read_loop(world, store_of(tmp_path, script), script)
    figures = summary(measure_loop(world, recorded, LoopSettings(seen=(4, 28))), 4)
    assert set(figures["dreams"]) == {"dream_t1_s4", "dream_t1_s10", "dream_t0_s4", "dream_t0_s10"}  # there are 10
    for name in figures["dreams"]:
        assert figures["end"][name] == figures["end"]["reconstruction"] == figures["end"]["environment"]
        assert figures["along"][name] == figures["along"]["reconstruction"]
    assert figures["end"]["environment"]["psnr"]["value"] == pytest.approx(58.92, abs=0.01)
    last = figures["along"]["last_frame"]
    assert len(last["psnr"]["value"]) == recorded.steps and last["psnr"]["value"][-1] == pytest.approx(58.92, abs=0.01)
    assert last["mean_psnr"]["value"] == pytest.approx(np.mean(last["psnr"]["value"])) and last["psnr"]["value"][0] < 30
    disobedient: Any = World(obedience=0.3)
    worse = summary(measure_loop(disobedient, recorded, LoopSettings(seen=(4,))), 4)
    assert worse["end"]["dream_t0_s4"]["psnr"]["high"] < 58


class Copying(Prior):
    """Sure of a grid that stands among the earlier ones, and of no other."""

    def log_likelihood(self, codes: Tensor, actions: Tensor) -> Tensor:
        place = codes[..., 0]
        earlier = torch.ones(place.shape[1], place.shape[1]).tril(-1).bool()
        known = ((place[:, :, None] == place[:, None]) & earlier).any(2)
        return torch.where(known, 0.0, -math.log(PLACES)).float()


def test_a_prior_that_copies_gains_what_a_place_costs(tmp_path: Path) -> None:
    world: Any = World()
    recorded = read_loop(world, store_of(tmp_path, TURN), TURN)
    everything, few = revisit_bits(world, recorded, few=4)
    assert np.array_equal(everything, few)  # it needs one earlier frame
    world.prior = Copying()
    everything, few = revisit_bits(world, recorded, few=4)
    assert few == pytest.approx(np.full(12, math.log2(PLACES)))  # nothing of the last four frames is seen again
    assert (everything[:, None] < few[:, None]).all() and everything[:].min() == 0
    gain = summary(measure_loop(world, recorded, LoopSettings()), 4)["revisit"]["gain"]
    assert gain["value"] == pytest.approx((few - everything).mean()) and gain["low"] > 1


def test_a_trunk_of_four_frames_gains_nothing() -> None:
    prior, codes = tiny_prior("conv"), random_segment(batch=10, steps=12).codes
    assert codes is not None

    class Given:
        """Frames are codes."""

        spec, device, num_codes, grid = SPEC, torch.device("cpu"), 16, (4, 4)

        def encode(self, frames: Tensor) -> Tensor:
            return frames.long()

    world: Any = Given()
    world.tokenizer, world.prior = world, prior
    script = parse_script("left*3,right*3", SPEC)
    actions = torch.cat([torch.full((10, 1), -1), torch.ones(10, 5, dtype=torch.int64)], 1)
    played = torch.from_numpy(script.play()).expand(10, -1)
    recorded = Recorded(script, codes, torch.cat([actions, played], 1))
    everything, few = revisit_bits(world, recorded, few=4)
    assert few == pytest.approx(everything, abs=1e-5) and everything.std() > 0.01
    assert revisit_bits(world, recorded, few=2)[1] != pytest.approx(everything, abs=1e-3)  # two frames are missed


def test_loops_are_in_the_report(tmp_path: Path) -> None:
    with EpisodeStore.writer(tmp_path / "data", SPEC) as writer:
        for seed in range(30):
            writer.append(record(seed))
    small = Settings(windows=4, horizon=5, frames=100, budget=None, long_dreams=None)
    loops = {script: store_of(tmp_path / name, script) for name, script in (("away", AWAY), ("turn", TURN))}
    store, folder, world = EpisodeStore.open(tmp_path / "data"), tmp_path / "evaluation", World()
    figures = evaluate(world, store, small, recorded_loops=loops, folder=folder)  # type: ignore[arg-type]
    assert {"loop-left4-right4.png", "loop-right12.png"} < {path.name for path in folder.iterdir()}
    assert set(json.loads((folder / "metrics.json").read_text())["loops"]) == {AWAY, TURN}
    page = (folder / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 4 and "revisit gain" in page
    names = [name for name, _ in rows(figures)]
    assert names.count("revisit gain, bits per code") == 2 and f"Loop {TURN}, 12 episodes" in names
    assert [panel.title for panel in panels(figures)][-3:] == [
        f"Loop {AWAY}", f"Loop {TURN}", "Revisit gain, bits per code"
    ]  # fmt: skip
    without = dataclasses.replace(small, loops=None)
    assert evaluate(world, store, without, recorded_loops=loops)["loops"] == {}  # type: ignore[arg-type]


def corridor_run(folder: Path, *words: str) -> Path:
    run = save_run(folder)
    settings = OmegaConf.load(run / "config.yaml")
    assert OmegaConf.is_dict(settings)
    changed = compose_config([*CHOOSE, *TINY, f"runs={folder}", *words])
    settings.env, settings.source = changed.env, changed.source
    (run / "config.yaml").write_text(OmegaConf.to_yaml(settings))
    return run


def silent(name: str, done: int, total: int) -> None:
    pass


def test_loops_of_a_run_are_recorded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("worldmodel.runs.loops.EPISODES", 3)
    loops = "+env.loops=[\"left*2,right\",'jump*3']"
    run, config = corridor_run(tmp_path, loops, f"env.id={ENDLESS}"), compose_config(CHOOSE)
    stores = recorded_loops(run / "evaluation/loops", run, config, silent)
    assert list(stores) == ["left*2,right"] and stores["left*2,right"].path.name == "left2-right"
    assert "the loop jump*3 is not measured: unknown action 'jump'; choose left, right" in caplog.text
    episodes = [stores["left*2,right"].episode(index) for index in range(3)]
    assert {one.steps for one in episodes} == {24 + 3}  # there is no noop to stand still
    assert {tuple(one.actions[-3:]) for one in episodes} == {(0, 0, 1)}
    assert not np.array_equal(episodes[0].actions, episodes[1].actions)
    made = (run / "evaluation/loops/left2-right/index.jsonl").stat().st_mtime_ns
    assert list(recorded_loops(run / "evaluation/loops", run, config, silent)) == ["left*2,right"]
    assert (run / "evaluation/loops/left2-right/index.jsonl").stat().st_mtime_ns == made
    again = recorded_loops(tmp_path / "elsewhere", run, config, silent)["left*2,right"]
    assert all(np.array_equal(again.episode(number).frames, one.frames) for number, one in enumerate(episodes))


def test_a_loop_longer_than_the_episodes_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("worldmodel.runs.loops.EPISODES", 2)
    run = corridor_run(tmp_path, "+env.loops=[left]")
    assert recorded_loops(run / "evaluation/loops", run, compose_config(), silent) == {}
    assert "the loop left is not measured: the environment ended all but 0 of its episodes before" in caplog.text
    assert not (run / "evaluation").exists()


def test_evaluate_measures_loops_unless_told_not_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("worldmodel.runs.loops.EPISODES", 3)
    run = corridor_run(tmp_path / "runs", "+env.loops=['left*2,right*2']", f"env.id={ENDLESS}", f"data={tmp_path}/data")
    words = [*CHOOSE, f"env.id={ENDLESS}", f"data={tmp_path / 'data'}", f"runs={tmp_path / 'runs'}"]
    assert collect(["--steps", "400", "collect.longest=20", *words]) == 0
    short = [*words, "--windows", "4", "--skip", "inverse", "--skip", "long"]
    assert main(short) == 0
    assert "revisit gain, bits per code" in capsys.readouterr().out
    assert {path.name for path in (run / "evaluation").glob("loop*")} == {"loops", "loop-left2-right2.png"}
    assert main([*short, "--skip", "loops"]) == 0
    assert "revisit gain" not in capsys.readouterr().out
    assert json.loads((run / "evaluation/metrics.json").read_text())["loops"] == {}


def test_loops_of_older_runs_come_from_the_command_line() -> None:
    now, other = compose_config(), compose_config(["env=vizdoom/health_gathering"])
    old = compose_config()
    del old.env.loops
    assert loops_of(now, other) == loops_of(old, now) == list(now.env.loops)
    assert loops_of(old, other) == []
    with pytest.raises(ConfigError, match=r"env\.loops is 'left'; it must be a list"):
        loops_of(OmegaConf.merge(now, {"env": {"loops": "left"}}), now)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["+env.loops=[left]", "env.id=Nowhere-v0"], "loops are not measured: cannot make environment 'Nowhere-v0'"),
        (
            ["+env.loops=[left]", "source=npz", "source.path=."],
            "loops are not measured: the data of the run were",
        ),
        (["+env.loops=[left]", "env.size=20"], "loops are not measured: the environment has other frames"),
        ([], ""),
    ],
)
def test_without_an_environment_there_are_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, words: list[str], reason: str
) -> None:
    run = corridor_run(tmp_path, *words)
    assert recorded_loops(run / "evaluation/loops", run, compose_config(), silent) == {}
    assert [message.startswith(reason) for message in caplog.messages] == [True] * bool(reason)
    assert not (run / "evaluation").exists()
