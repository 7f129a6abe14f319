"""Export of a model: its graphs give what PyTorch gives, and the static page dreams what Python dreams."""

from __future__ import annotations

import base64
import functools
import hashlib
import http.server
import json
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from corridor import SPEC as CORRIDOR
from play_server import save_played_run, where
from tiny import SHORT, SMALL_PRIOR, SMALL_TOKENIZER, tiny_prior

pytest.importorskip("onnx", reason="the extra onnx is not installed")
pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")

from worldmodel import export
from worldmodel.config.cli import compose_config
from worldmodel.data.store import EpisodeStore
from worldmodel.dreaming.videos import Place
from worldmodel.exporting import web
from worldmodel.exporting.graphs import MOST_GROUPS, graphs_of, trunk_graph
from worldmodel.exporting.parity import compare
from worldmodel.priors.motion import Motion
from worldmodel.runs.folder import PRIOR, TOKENIZER, new_run
from worldmodel.runs.models import build_prior, build_tokenizer
from worldmodel.serving.dreams import Dreamer
from worldmodel.training.checkpoint import save_tensors
from worldmodel.types import Spec
from worldmodel.world import WorldModel

SPEC = Spec("tiny", (3, 8, 8), ("noop", "forward", "left"), 10.0)
RUNTIME = os.environ.get("ONNXRUNTIME_WEB", "")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
PLAY = """async ({actions, seed, temperature}) => {
  const { Connection } = await import(new URL("page/connection.js", location.href));
  return new Promise((resolve, reject) => {
    const begun = async () => {
      const { places } = await connection.ask({ type: "starts", seed: 0 });
      const [episode, frame] = places[1];
      await connection.ask({ type: "begin", episode, frame, seed });
      const codes = [];
      for (const action of actions) {
        codes.push((await connection.ask({ type: "step", action, temperature })).codes);
      }
      resolve({ place: places[1], codes });
    };
    const connection = new Connection({ hello: begun, progress() {}, notice: reject, closed: reject });
    connection.open();
  });
}"""


def save_pose_run(runs: Path, head: str = "TransformerHead") -> Path:
    """An untrained run with a memory by pose, whose distributions are far from flat."""
    small = ["tokenizer.num_codes=16", "prior.trunk.blocks=1", *SHORT["conv_pose"], *SMALL_TOKENIZER, *SMALL_PRIOR]
    config = compose_config(["prior=conv_pose", f"prior.head._target_=worldmodel.heads.{head}", *small, f"runs={runs}"])
    torch.manual_seed(0)
    tokenizer = build_tokenizer(config, SPEC)
    prior: Any = build_prior(config, SPEC, tokenizer)
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    turn, move = torch.tensor([0.0, 0.1, 1.3]), torch.tensor([[0.0, 0.0], [0.5, 0.2], [0.0, 0.0]])
    prior.trunk.pose.set_motion(Motion(turn, move, torch.tensor(7.0), torch.tensor([0.7, 5.0, 2.0]), torch.tensor(1.0)))
    folder = new_run(config, SPEC)
    save_tensors(folder / TOKENIZER, tokenizer.state_dict())
    save_tensors(folder / PRIOR, prior.state_dict())
    return folder


def test_graphs_give_what_pytorch_gives(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import onnxruntime

    run, out = save_pose_run(tmp_path / "runs"), tmp_path / "out"
    assert export.main(["--to", "onnx", f"runs={run.parent}", f"--output={out}"]) == 0
    said = capsys.readouterr().out
    assert "256 of 256 codes equal" in said and "largest difference of frames" in said
    found = compare(WorldModel.load(run, "cpu", "fp32"), out)
    assert found["encoder"].share == found["prior"].share == 1
    assert found["prior"].largest["end"] < 1e-4 and found["decoder"].largest["frames"] <= 1
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["action_names"] == list(SPEC.action_names) and manifest["grid"] == [2, 2]
    prior, rows = manifest["graphs"]["prior"], 3
    feeds = {
        given["name"]: np.zeros([rows if size == "batch" else size for size in given["shape"]], given["type"])
        for given in prior["inputs"]
    }
    for part in manifest["state"]:
        feeds[part["input"]] += part["initial"]
    session = onnxruntime.InferenceSession(out / prior["file"], providers=["CPUExecutionProvider"])
    results = dict(zip([output["name"] for output in prior["outputs"]], session.run(None, feeds), strict=True))
    assert results["codes"].shape == (rows, 2, 2)
    assert {part["output"] for part in manifest["state"]} <= set(results)


def test_parts_of_a_state_are_inputs_of_their_own() -> None:
    inputs = trunk_graph(tiny_prior("transformer")).inputs  # which begins with one tensor for keys and values
    assert len({tensor.data_ptr() for tensor in inputs.values()}) == len(inputs)


def test_errors_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    def error(*argv: str) -> str:
        assert export.main(list(argv)) == 2
        return capsys.readouterr().err

    runs = tmp_path / "runs"
    folder = runs / "pictures-1"
    folder.mkdir(parents=True)
    trunk = "prior: {trunk: {_target_: worldmodel.priors.ConditionTrunk}}"
    (folder / "config.yaml").write_text(f"{trunk}\ntokenizer: {{}}\ntraining: {{}}\n")
    (folder / "spec.json").write_text(SPEC.to_json())
    (folder / PRIOR).touch()
    assert error("--to=web", f"runs={runs}", "run=pictures-1").endswith(
        "is of images, not of an environment; use python -m worldmodel.sample run=pictures-1\n"
    )
    assert error("--to=onnx", "--split=train").startswith("error: --split is for --to npz and --to minari, not for")
    monkeypatch.setattr("worldmodel.exporting.graphs.MOST_GROUPS", 3)
    run = save_pose_run(runs)
    message = error("--to=onnx", f"runs={runs}", f"run={run.name}", f"--output={tmp_path / 'out'}")
    assert message.startswith("error: the head TransformerHead cannot be exported: it draws 4 groups")
    assert MOST_GROUPS > 3 and not (tmp_path / "out").exists()

    def fail(*_: Any) -> None:
        raise RuntimeError("no such operation\nmore")

    monkeypatch.undo()
    monkeypatch.setattr("worldmodel.priors.conv_trunk.ConvTrunk._contexts", fail)
    monkeypatch.setattr("worldmodel.exporting.convert.graphs_of", lambda world: graphs_of(world)[2:])
    message = error("--to=onnx", f"runs={runs}", f"run={run.name}", f"--output={tmp_path / 'out'}")
    assert message.startswith("error: the trunk ConvTrunk cannot be exported (RuntimeError: no such operation)")


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert export.main(["--to=onnx"]) == 2
    assert capsys.readouterr().err == (
        "error: export --to onnx and --to web need onnxscript: pip install 'worldmodel[onnx]'\n"
    )


def fake_runtime(folder: Path) -> Path:
    folder.mkdir()
    for name in web.RUNTIME["wasm"].values():
        (folder / name).write_text(name)
    return folder


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run, and its export as a page."""
    folder = tmp_path_factory.mktemp("page")
    run = save_played_run(folder)
    runtime = Path(RUNTIME) if RUNTIME else fake_runtime(folder / "runtime")
    page = folder / "my world"
    assert export.main([*where(run), "--to=web", f"--output={page}", f"--runtime={runtime}"]) == 0
    return run, page


def test_the_page_is_complete(played: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, page = played
    world = json.loads((page / "world.json").read_text())
    for part in world["runtime"]["wasm"].values():
        digest = hashlib.sha384((page / part["url"]).read_bytes()).digest()
        assert part["integrity"] == "sha384-" + base64.b64encode(digest).decode()
    public = web.public_runtime()["wasm"]["script"]
    assert public["url"].startswith(f"https://cdn.jsdelivr.net/npm/onnxruntime-web@{web.VERSION}/dist/ort.")
    assert [action["name"] for action in world["hello"]["actions"]] == list(CORRIDOR.action_names)
    assert len(base64.b64decode(world["starts"][0]["pixels"])) == 4 * np.prod(CORRIDOR.frame_shape[1:])
    for name in ("index.html", "page/play.js", "page/play.css", "page/worker.js", "prior.onnx", "decoder.onnx"):
        assert (page / name).is_file()
    assert "worker.js" in (page / "page/connection.js").read_text()  # and not the connection to a server
    assert export.main([*where(run), "--to=web", f"--output={page}"]) == 2
    assert "--overwrite replaces it" in capsys.readouterr().err
    with pytest.raises(web.ConfigError, match=r"holds no ort.wasm.bundle.min.mjs; give the folder"):
        web.copy_runtime(tmp_path, tmp_path / "copy")


@pytest.fixture
def address(played: tuple[Path, Path]) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(played[1]))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: apt-get install chromium")
@pytest.mark.skipif(not RUNTIME, reason="ONNXRUNTIME_WEB names no folder of the npm package onnxruntime-web")
def test_the_page_dreams_what_python_dreams(played: tuple[Path, Path], address: str) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    errors: list[str] = []
    with playwright.sync_playwright() as starter:
        browser = starter.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"] if os.geteuid() == 0 else [])
        page = browser.new_page(viewport={"width": 320, "height": 640})
        page.on("console", lambda message: errors.append(message.text))
        page.on("pageerror", lambda error: errors.append(str(error)))
        own = (address, "data:", "blob:")
        page.on("request", lambda request: request.url.startswith(own) or errors.append(request.url))
        page.goto(address)
        page.get_by_text("press an action key").wait_for()
        for step, key in enumerate(("ArrowRight", "ArrowLeft"), 1):
            page.keyboard.press(key)
            playwright.expect(page.locator("#step")).to_have_text(str(step))
        assert page.evaluate("[play.state.actions, document.documentElement.scrollWidth]") == [[1, 0], 320]
        page.keyboard.press("u")
        playwright.expect(page.locator("#step")).to_have_text("1")
        with page.expect_download() as download:
            page.get_by_role("button", name="Save contact sheet").click()
        assert Path(download.value.path()).read_bytes().startswith(b"\x89PNG")
        actions = np.random.default_rng(0).integers(0, 2, 40).tolist()
        dreams = [
            page.evaluate(PLAY, {"actions": actions, "seed": seed, "temperature": temperature})
            for seed, temperature in ((2**40 + 7, 0.7), (0, 0.0))
        ]
        browser.close()
    assert errors == []
    run = played[0]
    world = WorldModel.load(run, "cpu", "fp32")
    dreamer = Dreamer(world, EpisodeStore.open(run.parents[1] / "data"))
    for dream, (seed, temperature) in zip(dreams, ((2**40 + 7, 0.7), (0, 0.0)), strict=True):
        seen = dreamer.read(Place(*dream["place"]))
        generator = torch.Generator().manual_seed(seed)
        frames, acts = torch.tensor(seen.frames), torch.tensor(seen.actions)
        ours = world.imagine(frames, actions, seen_actions=acts, temperature=temperature, generator=generator)
        equal = (torch.tensor(dream["codes"]) == ours.codes[0].flatten(1)).float().mean()
        assert equal >= 0.999
