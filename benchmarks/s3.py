"""Windows from a store on an S3 server on this machine, compared with the same store in a folder.

  pip install -e '.[s3-test]'
  python -m benchmarks.s3

Frames are made up. The rates are per second of the reading thread's own time, so that other programs on the same cores
change them little. A step of the tokenizer waits while the batch that was read ahead is not complete.
"""

import logging
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from worldmodel.config.cli import compose_config
from worldmodel.data import records
from worldmodel.data.store import EpisodeStore
from worldmodel.data.windows import Windows
from worldmodel.runs.models import build_tokenizer
from worldmodel.training.base import Ahead, make_batches
from worldmodel.training.objectives import TokenizerObjective
from worldmodel.types import Episode, Spec

SPEC = Spec("made up", (3, 64, 64), ("noop", "forward"), 10.0)
BATCH, ROUNDS, BATCHES, STEPS = 32, 25, 100, 20


def write(folder: Path) -> None:
    """16,020 frames in shards of 32 MiB."""
    records.SHARD_BYTES = 32 * 2**20
    random = np.random.default_rng(0)
    with EpisodeStore.writer(folder, SPEC) as store:
        for _ in range(20):
            frames = random.integers(0, 256, (801, *SPEC.frame_shape), dtype=np.uint8)
            actions, rewards = random.integers(0, 2, 800), np.zeros(800, np.float32)
            store.append(Episode.from_steps(frames, actions, rewards, False, True))


def rate(windows: Windows) -> float:
    """Windows per second of this thread's time."""
    started = time.thread_time()
    for step in range(BATCHES):
        windows.sample(BATCH, torch.Generator().manual_seed(step))
    return BATCH * BATCHES / (time.thread_time() - started)


def wait_share(store: EpisodeStore) -> float:
    """Share of the time of training steps of the default tokenizer in which they wait for their batch."""
    objective = TokenizerObjective(build_tokenizer(compose_config(), SPEC), 100)
    optimizer = torch.optim.AdamW(objective.parameters())
    ahead = Ahead(make_batches(Windows(store, "train").sample, 24, 0, 0))
    ahead(0)
    waited, started = 0.0, time.perf_counter()
    for step in range(1, STEPS + 1):
        before = time.perf_counter()
        batch = ahead(step)
        waited += time.perf_counter() - before
        torch.stack([*objective(batch, torch.Generator().manual_seed(step)).terms.values()]).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    ahead.close()
    return waited / (time.perf_counter() - started)


def main() -> None:
    import s3fs
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for each request
    with tempfile.TemporaryDirectory() as name:
        folder, url = Path(name), "s3://benchmark/store"
        write(folder / "local")
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        os.environ |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1",
                       "AWS_ENDPOINT_URL": "http://{}:{}".format(*server.get_host_and_port()),
                       "WORLDMODEL_CACHE": str(folder / "cache")}  # fmt: skip
        files = s3fs.S3FileSystem()
        files.mkdir("benchmark")
        files.put(str(folder / "local"), "benchmark/store", recursive=True)
        started = time.perf_counter()
        local, remote = (Windows(EpisodeStore.open(path), "train", 5, 4) for path in (folder / "local", url))
        remote.sample(BATCH, torch.Generator().manual_seed(0))
        print(f"cold: opened, and the first batch with all shards   {time.perf_counter() - started:.2f} s")
        pairs = np.array([(rate(local), rate(remote)) for _ in range(ROUNDS)])
        print(f"warm: windows/s, local and S3 (medians)             {np.median(pairs[:, 0]):,.0f}  "
              f"{np.median(pairs[:, 1]):,.0f}")  # fmt: skip
        print(f"warm: ratio, median of {ROUNDS} rounds                   {np.median(pairs[:, 1] / pairs[:, 0]):.2f}")
        for word, path in (("local", folder / "local"), ("S3", url)):
            print(f"share of a training step that waits, {word:<5}          {wait_share(EpisodeStore.open(path)):.1%}")
        server.stop()


if __name__ == "__main__":
    main()
