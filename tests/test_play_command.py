"""The play command as a user calls it: its errors, and a server that is started, played with and stopped."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from corridor import LONGEST, SPEC
from corridor_run import save_run

pytest.importorskip("starlette", reason="the extra play is not installed")
from websockets.sync.client import connect

from worldmodel import play
from worldmodel.data.store import EpisodeStore
from worldmodel.serving.messages import unpack
from worldmodel.types import Episode


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the corridor; its episodes are in the folder ``data`` beside ``runs``."""
    folder = tmp_path_factory.mktemp("play")
    rng = np.random.default_rng(0)
    with EpisodeStore.writer(folder / "data", SPEC) as store:
        for _ in range(3):
            frames = rng.integers(0, 256, (LONGEST, *SPEC.frame_shape), dtype=np.uint8)
            actions, rewards = rng.integers(0, 2, LONGEST - 1), np.zeros(LONGEST - 1)
            store.append(Episode.from_steps(frames, actions, rewards, False, True))
    return save_run(folder / "runs")


def where(run: Path) -> list[str]:
    return [f"runs={run.parent}", f"data={run.parents[1] / 'data'}", "device=cpu"]


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


def test_a_dream_is_played(run: Path) -> None:
    command = [sys.executable, "-m", "worldmodel.play", *where(run), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None and server.stderr is not None
        try:
            lines = [server.stdout.readline() for _ in range(3)]
            address = lines[1].split()[-1].replace("http", "ws")
            with connect(f"{address}play", origin=address.replace("ws", "http")[:-1]) as page:  # type: ignore[arg-type]
                assert json.loads(page.recv())["run"] == run.name
                page.send('{"type":"begin","episode":0,"frame":0,"seed":1}')
                steps = [unpack(page.recv())]  # type: ignore[arg-type]
                for action in (1, 1, 0):
                    page.send(json.dumps({"type": "step", "action": action}))
                    steps.append(unpack(page.recv()))  # type: ignore[arg-type]
                assert [header["step"] for header, _ in steps] == [0, 1, 2, 3]
                assert all(len(parts["dream"]) == SPEC.frame_shape[1] ** 2 * 4 for _, parts in steps)
                server.send_signal(signal.SIGINT)
                assert server.wait(60) == 0
        finally:
            server.kill()
        assert server.stderr.read() == ""
