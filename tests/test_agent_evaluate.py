"""Agents measured through the commands: the same episodes for all, figures, plots and videos, errors in one line."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import corridor
import imageio_ffmpeg
import numpy as np
import pytest
from corridor_run import save_run
from PIL import Image

from worldmodel.agents import compare, evaluate, playing, train
from worldmodel.agents.actor import RETURNS, load_network
from worldmodel.agents.choice import agent_name_of
from worldmodel.agents.explorers import UniformExplorer
from worldmodel.agents.playing import UnfinishedEvaluation, play
from worldmodel.config.cli import compose_config
from worldmodel.envs import make_frames
from worldmodel.errors import BusyError, EnvError, RunError
from worldmodel.recording.recorder import Order, Recording
from worldmodel.runs.data import spec_of

Say = Callable[..., str]
ACT = partial(make_frames, corridor.ID, size=16)


def orders(numbers: Iterable[int], seed: int = 7) -> list[Order]:
    return [Order.episode(seed, number, longest=8) for number in numbers]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    save_run(folder)
    return folder


def frames_of(video: Path) -> int:
    return imageio_ffmpeg.count_frames_and_secs(str(video))[0]


def test_a_random_agent_through_the_command(say: Say, tmp_path: Path) -> None:
    output = say(evaluate, *corridor.CHOOSE, "episodes=6", "--videos", "2")
    folder = tmp_path / "runs" / "agents" / "random-corridor-corridor-v0"
    found = json.loads((folder / "metrics.json").read_text())
    assert "return, interquartile mean" in output and "success" in output and "dreamt" not in output
    assert (found["agent"], found["run"], found["seed"], len(found["episodes"])) == ("random", None, 0, 6)
    returns = [episode["return"] for episode in found["episodes"]]
    assert found["return"]["value"] == pytest.approx(np.mean(returns))
    assert found["return"]["low"] <= found["return"]["value"] <= found["return"]["high"]
    for episode in found["episodes"]:
        there = episode["length"] < corridor.LONGEST or episode["return"] > -1.1
        assert episode["return"] == pytest.approx(1.1 * there - 0.1 * episode["length"])
        assert episode["success"] == episode["terminated"] == there
    assert found["steps"] == sum(episode["length"] for episode in found["episodes"])
    assert found["success"]["value"] == np.mean([episode["success"] for episode in found["episodes"]])
    assert found["command"].startswith("python -m worldmodel.agents.evaluate env=gym")
    Image.open(folder / "report.png").verify()
    assert frames_of(folder / "episodes.mp4") == 1 + max(e["length"] for e in found["episodes"][:2])
    assert not (folder / "dream.mp4").exists()


def test_success_may_be_a_return(say: Say, tmp_path: Path) -> None:
    say(evaluate, *corridor.CHOOSE, "episodes=6", "seed=3", "--videos", "0", "--success", "0.5", "--name", "mine")
    folder = tmp_path / "runs" / "agents" / "mine-corridor-corridor-v0-seed3"
    found = json.loads((folder / "metrics.json").read_text())
    assert [e["success"] for e in found["episodes"]] == [e["return"] >= 0.5 for e in found["episodes"]]
    assert found["success_rule"] == "a return of 0.5 or more" and found["agent"] == "mine"
    assert sorted(path.name for path in folder.iterdir()) == ["metrics.json", "report.png"]


def test_an_actor_and_the_dream_of_its_world(say: Say, runs: Path) -> None:
    output = say(evaluate, *corridor.CHOOSE, "agent=actor_critic", f"runs={runs}", "episodes=5", "--horizon", "4")
    folder = runs / "tiny" / "agents" / "actor_critic-corridor-corridor-v0"
    found = json.loads((folder / "metrics.json").read_text())
    assert found["run"] == "tiny" and "obtained return, up to 4 steps" in " ".join(output.split())
    dream = found["dream"]
    assert dream["first"]["windows"] == 5 and dream["all"]["windows"] == len(dream["pairs"]["dreamt"])
    for i, number in enumerate(dream["pairs"]["episodes"]):
        episode, start = found["episodes"][number], dream["pairs"]["starts"][i]
        left = episode["length"] - start
        assert dream["pairs"]["lengths"][i] == min(4, left)
        earned = 1.1 if episode["terminated"] and left <= 4 else 0
        assert dream["pairs"]["obtained"][i] == pytest.approx(earned - 0.1 * min(4, left), abs=1e-6)
    Image.open(folder / "report.png").verify()
    assert frames_of(folder / "dream.mp4") == frames_of(folder / "episodes.mp4") > 1


@pytest.mark.parametrize("workers", [1, 2])
def test_a_planner_shows_what_it_imagined(say: Say, runs: Path, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans are those of the first episode alone, whoever played it, and the video is as long as it."""
    played = []

    def watched(*args: Any) -> Iterator[Recording]:
        for one in play(*args):
            played.append(one)
            yield one

    monkeypatch.setattr("worldmodel.agents.evaluation.play", watched)
    say(
        *(evaluate, *corridor.CHOOSE, "agent=mpc", "agent.candidates=8", "agent.horizon=5", "agent.iterations=1"),
        *("agent.repeat=2", f"runs={runs}", "episodes=2", "--name", f"mpc{workers}", f"collect.workers={workers}"),
    )
    folder = runs / "tiny" / "agents" / f"mpc{workers}-corridor-corridor-v0"
    found = json.loads((folder / "metrics.json").read_text())
    assert frames_of(folder / "plan.mp4") == found["episodes"][0]["length"] + 1

    first, second = sorted(played, key=lambda one: one.number)
    assert len(first.plans) == first.episode.steps and not second.plans
    for step, plan in enumerate(first.plans):
        assert (plan is None) == (step % 2 == 1)  # a decision is held for two steps
        assert plan is None or plan.actions[0] == first.episode.actions[step + 1]


def test_episodes_depend_on_their_number_alone() -> None:
    alone = list(play(ACT, UniformExplorer(), orders(range(5))))
    together = sorted(play(ACT, UniformExplorer(), orders(range(5)), workers=2), key=lambda one: one.number)
    for one, other in zip(alone, together, strict=True):
        assert one.number == other.number and one.episode.steps <= 8
        assert np.array_equal(one.episode.frames, other.episode.frames)
        assert np.array_equal(one.episode.actions, other.episode.actions)
    starts = {one.episode.frames[0].tobytes() for one in alone}
    assert len(starts) > 1
    others = list(play(ACT, corridor.Right(), orders(range(5))))
    assert [one.episode.frames[0].tobytes() for one in others] == [one.episode.frames[0].tobytes() for one in alone]


@pytest.mark.parametrize("workers", [1, 2])
def test_one_may_stop_in_the_middle(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The callback receives all steps; where it returns false, the unfinished episode is dropped."""
    monkeypatch.setattr(playing, "SECONDS", 0.0)  # processes report five times a second
    counts = []
    alone = list(play(ACT, corridor.Right(), orders(range(3)), on_steps=lambda steps: counts.append(steps) or True))
    assert sum(counts) == sum(one.episode.steps for one in alone)
    played, asked = [], 0

    def on_steps(steps: int) -> bool:
        nonlocal asked
        asked += steps > 0
        return asked < 12

    for one in play(ACT, corridor.Right(), orders(range(100_000)), workers, on_steps):
        played.append(one.number)
    assert 0 < len(played) < 100_000


def test_an_interrupted_evaluation_goes_on(say: Say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Episodes that were finished are not played again, and the figures are those of an evaluation in one go; under
    other settings all are played."""
    numbers: list[list[int]] = []

    def stopping(make_env: Any, agent: Any, wanted: list[Order], *others: Any) -> Iterator[Recording]:
        numbers.append([order.number for order in wanted])
        for one in play(make_env, agent, wanted, *others):
            yield one
            if len(numbers) in (1, 4) and one.number == 2:
                signal.raise_signal(signal.SIGINT)

    words = (*corridor.CHOOSE, "episodes=6", "--videos", "2")
    say(evaluate, *words, "--name", "whole")
    monkeypatch.setattr("worldmodel.agents.evaluation.play", stopping)
    folder = tmp_path / "runs" / "agents" / "parts-corridor-corridor-v0"
    assert "interrupted" in say(evaluate, *words, "--name", "parts", code=130)
    assert not folder.exists() and len(list((tmp_path / "runs" / "unfinished").iterdir())) == 1
    say(evaluate, *words, "--name", "parts", "collect.longest=7", "--videos", "0", "episodes=2")
    say(evaluate, *words, "--name", "parts", "episodes=2")
    assert json.loads((folder / "metrics.json").read_text())["return"]["samples"] == 2
    say(evaluate, *words, "--name", "parts", code=130)
    say(evaluate, *words, "--name", "parts")
    every = list(range(6))
    assert numbers == [every, [0, 1], [], every, [3, 4, 5]]
    assert not (tmp_path / "runs" / "unfinished").exists()
    found, whole = (
        json.loads((path / "metrics.json").read_text())
        for path in (folder, folder.with_name("whole-corridor-corridor-v0"))
    )
    assert found["episodes"] == whole["episodes"] and found["return"] == whole["return"]
    assert found["seconds_a_decision"] > 0
    assert sorted(path.name for path in folder.iterdir()) == ["episodes.mp4", "metrics.json", "report.png"]


def test_what_was_kept_of_another_agent_is_of_no_use(tmp_path: Path) -> None:
    folder = tmp_path / "agents" / "right"
    spec = spec_of(ACT)
    (one,) = play(ACT, corridor.Right(), orders([4]))
    with UnfinishedEvaluation(folder, spec, {"seed": 7}) as kept:
        kept.add(one)
        with pytest.raises(
            BusyError,
            match=r"another process runs the same evaluation for .*right; wait for it, or choose another --name",
        ):
            UnfinishedEvaluation(folder, spec, {"seed": 7})
        with UnfinishedEvaluation(folder, spec, {"seed": 8}) as other:
            assert not list(other)
            other.discard()
    with UnfinishedEvaluation(folder, spec, {"seed": 7}) as kept:
        (again,) = kept
        assert (again.number, again.seconds, again.episode.terminated) == (4, one.seconds, one.episode.terminated)
        assert np.array_equal(again.episode.frames, one.episode.frames)
        assert np.array_equal(again.episode.rewards, one.episode.rewards)
        kept.discard()
    assert not list(tmp_path.iterdir())


def test_a_kept_episode_that_is_damaged_is_played_again(tmp_path: Path) -> None:
    folder = tmp_path / "agents" / "right"
    spec = spec_of(ACT)
    with UnfinishedEvaluation(folder, spec, {}) as kept:
        for one in play(ACT, corridor.Right(), orders(range(3))):
            kept.add(one)
    frames = kept.folder / "shard-00000.frames"
    frames.write_bytes(bytes(10) + frames.read_bytes()[10:])
    with UnfinishedEvaluation(folder, spec, {}) as kept:
        assert [one.number for one in kept] == [1, 2]


def test_what_fails_in_another_process_is_reported() -> None:
    with pytest.raises(EnvError, match="an episode failed: ZeroDivisionError: nothing to do"):
        list(play(ACT, corridor.Right(fails=True), orders(range(4)), workers=2))


def test_a_process_that_is_killed_is_replaced_and_its_episode_played_again(tmp_path: Path) -> None:
    (tmp_path / "flag").touch()
    played = sorted(
        play(ACT, corridor.Killed(tmp_path / "flag"), orders(range(5)), workers=2), key=lambda one: one.number
    )
    alone = play(ACT, corridor.Right(), orders(range(5)))
    for one, other in zip(alone, played, strict=True):
        assert one.number == other.number and np.array_equal(one.episode.frames, other.episode.frames)
    assert not (tmp_path / "flag").exists()


def test_an_environment_that_fails_now_and_then_is_reset() -> None:
    env = Flaky(2)
    (played,) = play(lambda: env, corridor.Right(), orders([0], seed=0))
    assert env.resets == 3 and played.episode.terminated
    with pytest.raises(EnvError, match="engine died"):
        list(play(lambda: Flaky(3), corridor.Right(), orders([0], seed=0)))


class Flaky:
    """The corridor, whose first few steps fail."""

    def __init__(self, failures: int):
        self.env, self.failures, self.resets = ACT(), failures, 0
        self.data_spec, self.close = self.env.data_spec, self.env.close

    def reset(self, *, seed: int | None = None) -> Any:
        self.resets += 1
        return self.env.reset(seed=seed)

    def step(self, action: int) -> Any:
        if self.resets <= self.failures:
            raise EnvError("the engine died")
        return self.env.step(action)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["agent=genius"], "there is no agent 'genius'; choose actor_critic, "),
        (["agent=actor_critic", "runs=nothing"], "there are no runs in nothing"),
        (["agent=actor_critic", "run=gone"], "unknown run 'gone'"),
        (["agent=actor_critic", "run=other"], "is of corridor:Corridor-v0 with frames (3, 16, 16)"),
        (["agent=actor_critic", "run=tiny", "env.size=32"], "not of corridor:Corridor-v0 with (3, 32, 32)"),
        (["agent=actor_critic", "run=bare"], "has no agent.safetensors, which this agent needs"),
        (["episodes=0"], "episodes is 0; it must be at least 1"),
        (["--horizon", "0"], "--horizon is 0; it must be at least 1"),
        (["--success", "nan"], "--success is nan; it must be a finite number"),
        (["--name", "a/b"], "--name 'a/b': the name becomes that of a folder"),
        (["agent._target_=worldmodel.agents.nothing.Here"], "agents.nothing"),
    ],
)
def test_what_cannot_be_is_one_line(argv: list[str], message: str, say: Say, runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs, tmp_path / "runs")
    for name in ("other", "bare"):
        shutil.copytree(tmp_path / "runs" / "tiny", tmp_path / "runs" / name)
    (tmp_path / "runs" / "bare" / "agent.safetensors").unlink()
    spec = json.loads((tmp_path / "runs" / "other" / "spec.json").read_text())
    del spec["crc32"]
    (tmp_path / "runs" / "other" / "spec.json").write_text(json.dumps({**spec, "action_names": ["up", "down"]}))
    err = say(evaluate, *corridor.CHOOSE, *argv, code=2)
    assert message in err and err.count("\n") == 1


def test_damaged_settings_of_an_actor_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "agent.yaml").write_text("network: {")
    with pytest.raises(RunError, match=r"agent\.yaml is damaged \(while parsing .*; train one: ") as caught:
        load_network(tmp_path)
    assert "\n" not in str(caught.value)


def test_an_agent_without_training_is_refused(say: Say) -> None:
    err = say(train, *corridor.CHOOSE, code=2)
    assert err.startswith("error: agent=random cannot be trained; choose agent=actor_critic or agent=sb3_")
    err = say(
        train, *corridor.CHOOSE, "agent=actor_critic", "agent.learner._target_=worldmodel.agents.nothing.learn", code=2
    )
    assert "agent.learner._target_ is 'worldmodel.agents.nothing.learn', which cannot be imported" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("setting", ["training.agent.batch=0", "training.prior.steps=-1"])
def test_settings_of_a_stage_are_checked_before_steps_are_collected(say: Say, tmp_path: Path, setting: str) -> None:
    err = say(train, *corridor.CHOOSE, "agent=actor_critic", "steps=50", setting, code=2)
    assert err.startswith(f"error: {setting.replace('=', ' is ')}; it must be") and err.count("\n") == 1
    assert not (tmp_path / "data").exists() and not (tmp_path / "runs").exists()


def test_agents_are_called_by_their_choice() -> None:
    for words, name in ((["agent=actor_critic"], "actor_critic"), ([], "random"), (["seed=3"], "random")):
        assert agent_name_of(words, compose_config(words)) == name
    other = ["agent._target_=worldmodel.agents.explorers.StickyExplorer"]
    assert agent_name_of(other, compose_config(other)) == "stickyexplorer"


def write_evaluation(folder: Path, agent: str, returns: list[float], seed: int = 0, env: str = "here") -> str:
    episodes = [{"return": value, "length": 1, "terminated": True, "success": value > 0} for value in returns]
    facts = {"agent": agent, "seed": seed, "run": None, "env": env, "environment": env, "env_kwargs": {},
             "success_rule": "positive", "episodes": episodes}  # fmt: skip
    path = folder / f"{agent}-{seed}-{env}"
    path.mkdir()
    (path / "metrics.json").write_text(json.dumps(facts))
    return str(path)


def test_evaluations_are_compared(say: Say, tmp_path: Path) -> None:
    good = [write_evaluation(tmp_path, "good", [5, 6, 7, 8], seed) for seed in range(3)]
    bad, same = write_evaluation(tmp_path, "bad", [-1, 0, 0, 1]), write_evaluation(tmp_path, "same", [0, 0, 1, -1])
    output = say(compare, *good, f"{bad}/metrics.json", same, "--to", str(tmp_path / "out"))
    assert "good, 3 runs, 12 episodes" in output and "none disjoint" in output
    found = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert found["agents"]["good"]["return_iqm"]["value"] == 6.5 and found["agents"]["good"]["seeds"] == [0, 1, 2]
    pairs = {(pair["one"], pair["other"]): pair for pair in found["pairs"]}
    assert set(pairs) == {("good", "bad"), ("good", "same"), ("bad", "same")}
    assert pairs["good", "bad"]["probability_of_improvement"]["value"] == 1
    assert pairs["good", "bad"]["apart"] == {"return_iqm": True, "return": True, "success": True}
    assert pairs["bad", "same"]["probability_of_improvement"]["value"] == 0.5
    assert not any(pairs["bad", "same"]["apart"].values())
    Image.open(tmp_path / "out" / "comparison.png").verify()


def test_returns_while_learning_are_compared(say: Say, tmp_path: Path) -> None:
    place = tmp_path / "run" / "agents"
    place.mkdir(parents=True)

    def learnt(name: str, seed: int, returns: list[float], **more: Any) -> str:
        folder = Path(write_evaluation(place, name, [1, 2], seed))
        found = json.loads((folder / "metrics.json").read_text()) | more
        (folder / "metrics.json").write_text(json.dumps(found))
        lines = [json.dumps({"step": 10 * (1 + at), "return": value}) for at, value in enumerate(returns)]
        where = folder if found["run"] is None else folder.parent.parent
        (where / RETURNS).write_text("\n".join(lines) + "\n")
        return str(folder)

    yardstick = [learnt("yardstick", 0, [0.0, 2.0, 4.0], run=None), learnt("yardstick", 1, [2.0, 2.0], run=None)]
    actor = learnt("actor", 0, [5.0] * 30 + [8.0] * 20, run="r", choice="actor_critic")
    planner = write_evaluation(tmp_path, "planner", [3, 4])
    elsewhere = Path(planner) / "other-name.json"
    (Path(planner) / "metrics.json").rename(elsewhere)
    say(compare, *yardstick, actor, str(elsewhere), "--to", str(tmp_path / "out"))
    curves = json.loads((tmp_path / "out" / "comparison.json").read_text())["learning"]
    assert set(curves) == {"yardstick", "actor"}
    curve = curves["yardstick"]  # means of 0; 0, 2 and of 2; 2, 2: as far as both go
    assert (curve["steps"][0], curve["steps"][-1]) == (10, 20)
    for name, first, last in (("return", 1, 1.5), ("low", 0, 1), ("high", 2, 2)):
        assert (curve[name][0], curve[name][-1]) == pytest.approx((first, last))
    assert (curves["actor"]["return"][0], curves["actor"]["return"][-1]) == pytest.approx((5, 8))
    Image.open(tmp_path / "out" / "comparison.png").verify()


def test_only_what_was_measured_alike_is_compared(say: Say, tmp_path: Path) -> None:
    one, other = write_evaluation(tmp_path, "one", [1]), write_evaluation(tmp_path, "one", [1], env="there")
    assert "compare evaluations of the same environment" in say(compare, one, other, code=2)
    assert "is given twice" in say(compare, one, f"{one}/metrics.json", code=2)
    assert "gone/metrics.json is not an evaluation" in say(compare, one, "gone/metrics.json", code=2)


def test_a_comparison_that_cannot_be_written_is_one_line(say: Say, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    err = say(compare, write_evaluation(tmp_path, "one", [1]), "--to", str(tmp_path / "file"), code=2)
    assert err.startswith(f"error: Not a directory ({tmp_path / 'file'})") and err.count("\n") == 1
