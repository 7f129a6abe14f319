"""The play command as a user calls it: its errors, and a server that is started, played with and stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corridor import SPEC
from play_server import save_played_run, serving, where
from processes import alive, wait_until_gone

pytest.importorskip("starlette", reason="the extra play is not installed")
from starlette.testclient import TestClient
from websockets.sync.client import connect

from worldmodel import play
from worldmodel.data.store import EpisodeStore
from worldmodel.errors import EnvError
from worldmodel.serving.app import Server
from worldmodel.serving.batching import Batcher
from worldmodel.serving.dreams import Dreamer
from worldmodel.serving.messages import unpack
from worldmodel.serving.simulator import Simulator, Truth, environment_of
from worldmodel.types import NO_ACTION
from worldmodel.world import WorldModel


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_played_run(tmp_path_factory.mktemp("play"))


def test_a_port_in_use_is_named(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert play.main([*where(run), "--port", str(port)]) == 2
    message = f"error: cannot listen at 127.0.0.1:{port} (Address already in use); choose another --port"
    assert capsys.readouterr().err.startswith(message)


def test_a_run_of_images_names_its_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "runs" / "pictures-1"
    folder.mkdir(parents=True)
    trunk = "prior: {trunk: {_target_: worldmodel.priors.ConditionTrunk}}"
    (folder / "config.yaml").write_text(f"{trunk}\ntokenizer: {{}}\ntraining: {{}}\n")
    (folder / "spec.json").write_text(SPEC.to_json())
    (folder / "prior.safetensors").touch()
    assert play.main([f"runs={folder.parent}", "run=pictures-1", "--port=0"]) == 2
    assert capsys.readouterr().err == (
        "error: the run pictures-1 is of images, not of an environment; "
        "use python -m worldmodel.sample run=pictures-1\n"
    )


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in [name for name in sys.modules if name.startswith("worldmodel.serving")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert play.main([]) == 2
    assert capsys.readouterr().err == "error: play needs uvicorn: pip install 'worldmodel[play]'\n"


def simulator(run: Path, context: int = 2) -> Simulator:
    return Simulator(environment_of(run, SPEC), SPEC.action_names, context)


def same(truth: Truth, other: Truth) -> bool:
    return np.array_equal(truth.frame, other.frame) and truth[1:] == other[1:]


def test_the_environment_follows_and_goes_back(run: Path) -> None:
    with contextlib.closing(simulator(run)) as beside:
        begun = beside.begin(3)
        assert begun.frames.shape == (2, *SPEC.frame_shape) and begun.actions[0] == NO_ACTION
        first = [beside.step(0) for _ in range(3)]
        assert first[2].total == pytest.approx(-0.3) and not first[2].ended
        assert same(beside.undo(2), first[0])
        assert same(beside.step(0), first[1])
        beside.undo(1)
        ways = [beside.step(1) for _ in range(5)]  # to the end and on
        assert ways[4].ended and ways[4].reward == 0 and same(ways[4], ways[3]._replace(reward=0.0))
        assert not beside.undo(4).ended and not beside.step(0).ended
        assert beside._child is not None
        assert "libtorch" not in Path(f"/proc/{beside._child.process.pid}/maps").read_text()  # starts in half a second


def test_an_environment_that_dies_is_started_again(run: Path) -> None:
    with contextlib.closing(simulator(run)) as beside, contextlib.closing(simulator(run)) as other:
        beside.begin(3), other.begin(3)
        assert same(beside.step(0), other.step(0))
        assert beside._child is not None
        beside._child.process.kill()
        assert same(beside.step(1), other.step(1))
        assert "started again: the process of the environment has ended" in beside.report
        process = beside._child.process.pid
        beside.close()
        assert not alive(process)
        with pytest.raises(EnvError, match="the visitor has left"):
            beside.step(0)


def test_the_environment_is_shown_beside_the_dream(run: Path) -> None:
    world = WorldModel.load(run, "cpu")
    dreamer = Dreamer(world, EpisodeStore.open(run.parents[1] / "data"))
    guard = {"hosts": None, "token": None}
    server = Server(run.name, SPEC, Batcher(dreamer), guard, make_env=environment_of(run, SPEC))
    with TestClient(server.app) as client, client.websocket_connect("/play") as page:

        def ask(**request: Any) -> tuple[dict[str, Any], dict[str, bytes]]:
            page.send_json(request)
            return unpack(page.receive_bytes())

        assert page.receive_json()["beside"]
        header, parts = ask(type="environment", seed=3)
        assert header["psnr"] is None and parts["dream"] == parts["truth"]
        steps = [ask(type="step", action=0) for _ in range(2)]
        found = [header["psnr"] for header, _ in steps]
        assert steps[1][0]["psnr_mean"] == pytest.approx(np.mean(found))
        header, parts = ask(type="undo", steps=1)
        assert (header["psnr"], parts["truth"]) == (found[0], steps[0][1]["truth"])
        assert ask(type="save", suffix="png")[1]["file"].startswith(b"\x89PNG")
        assert "truth" not in ask(type="begin", episode=0, frame=0, seed=0)[1]
        [visit] = server.visits
        assert visit.beside is not None and visit.beside.simulator._child is not None
        process = visit.beside.simulator._child.process.pid
    assert wait_until_gone(process) and not server.visits


def test_an_environment_that_has_changed_is_named(run: Path) -> None:
    with pytest.raises(EnvError, match="other frames or actions than tiny"):
        environment_of(run, dataclasses.replace(SPEC, action_names=("up", "down")))


def test_a_dream_is_played(run: Path) -> None:
    with serving(run) as (address, process):
        socket_address = address.replace("http", "ws") + "play"
        with connect(socket_address, origin=address[:-1]) as page:  # type: ignore[arg-type]
            assert json.loads(page.recv())["run"] == run.name
            page.send('{"type":"begin","episode":0,"frame":0,"seed":1}')
            steps = [unpack(page.recv())]  # type: ignore[arg-type]
            for action in (1, 1, 0):
                page.send(json.dumps({"type": "step", "action": action}))
                steps.append(unpack(page.recv()))  # type: ignore[arg-type]
            page.send('{"type":"drive"}')  # the actor of the run
            steps.append(unpack(page.recv()))  # type: ignore[arg-type]
            assert [header["step"] for header, _ in steps] == [0, 1, 2, 3, 4]
            assert all(len(parts["dream"]) == SPEC.frame_shape[1] ** 2 * 4 for _, parts in steps)
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
