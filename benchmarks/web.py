"""The page of ``export --to web`` in headless Chromium: frames a second, and codes compared with PyTorch.

python -m worldmodel.export --to web --output my-world --runtime package run=my_way_home-1
python -m benchmarks.web my-world run=my_way_home-1
"""

import argparse
import contextlib
import functools
import http.server
import os
import shutil
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from worldmodel.config.cli import compose_config
from worldmodel.dreaming.videos import Place
from worldmodel.runs.folder import PRIOR, given_data, open_episodes
from worldmodel.runs.kind import Kind, choose_run
from worldmodel.serving.dreams import Dreamer
from worldmodel.world import WorldModel

DREAM = """async ({actions, seed, temperature}) => {
  const { Connection } = await import(new URL("page/connection.js", location.href));
  return new Promise((resolve, reject) => {
    const begun = async () => {
      const { places } = await connection.ask({ type: "starts", seed: 0 });
      const [episode, frame] = places[0];
      await connection.ask({ type: "begin", episode, frame, seed });
      const [codes, milliseconds, started] = [[], [], performance.now()];
      for (const action of actions) {
        const reply = await connection.ask({ type: "step", action, temperature });
        codes.push(reply.codes);
        milliseconds.push(reply.milliseconds);
      }
      connection.worker.terminate();
      resolve({ place: places[0], codes, milliseconds, seconds: (performance.now() - started) / 1000 });
    };
    const connection = new Connection({ hello: begun, progress() {}, notice: reject, closed: reject });
    connection.open();
  });
}"""


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a server of static files."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--frames", type=int, default=300)
    args, overrides = parser.parse_known_args(argv)
    from playwright import sync_api

    config = compose_config(overrides)
    run = choose_run(overrides, config, PRIOR, Kind.WORLD)
    world = WorldModel.load(run, "cpu", "fp32")
    dreamer = Dreamer(world, open_episodes(run, world.spec, given_data(overrides, config)))
    rng = np.random.default_rng(0)
    actions = rng.integers(0, len(world.spec.action_names), args.frames // 3 + 1).repeat(3)[: args.frames].tolist()
    program = shutil.which("chromium") or shutil.which("google-chrome")
    with served(args.folder) as address, sync_api.sync_playwright() as starter:
        flags = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = starter.chromium.launch(executable_path=program, args=flags)
        page = browser.new_page()
        started = time.perf_counter()
        page.goto(address)
        page.get_by_text("press an action key").wait_for()
        load = os.getloadavg()[0]
        print(f"from the address to the first frame {time.perf_counter() - started:.1f} s; load {load:.1f}")
        for seed, temperature in ((1, 1.0), (2, 0.0)):
            settings = {"actions": actions, "seed": seed, "temperature": temperature}
            dream = page.evaluate(DREAM, settings)
            seen = dreamer.read(Place(*dream["place"]))
            ours = world.imagine(
                torch.tensor(seen.frames), actions, seen_actions=torch.tensor(seen.actions),
                temperature=temperature, generator=torch.Generator().manual_seed(seed),
            )  # fmt: skip
            equal = (torch.tensor(dream["codes"]) == ours.codes[0].flatten(1)).float().mean()
            p50, p95 = statistics.quantiles(dream["milliseconds"], n=20)[9::9]
            print(
                f"temperature {temperature}: {args.frames / dream['seconds']:.1f} frames/s, p50 {p50:.1f} and p95 "
                f"{p95:.1f} ms a frame; {100 * float(equal):.3f} % of {ours.codes.numel():,} codes equal PyTorch's"
            )
        browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
