"""Recordings and a run of a tiny environment, on which faults are injected."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.faults.corridor import ACTIONS, ID, SIZE
from benchmarks.subject import save_untrained
from worldmodel.config.cli import compose_config
from worldmodel.data.store import EpisodeStore
from worldmodel.types import Episode, Spec

SPEC = Spec(ID, (3, SIZE, SIZE), ACTIONS, 10.0)
SPEECH = Spec("tiny", (1, 640), ("p225", "p226"), 25.0)
ENV = ("env=gym", f"env.id={ID}", f"env.size={SIZE}", "device=cpu", "collect.workers=1")
STAGE = {"batch": 2, "steps": 6, "log_every": 1, "evaluate_every": 4, "evaluate_batches": 1, "checkpoint_seconds": 0,
         "precision": "fp32"}  # fmt: skip
STAGES = [f"training.{stage}.{k}={v}" for stage in ("tokenizer", "prior", "agent") for k, v in STAGE.items()]
SMALL = ("tokenizer.widths=[4,4]", "tokenizer.blocks=1", "tokenizer.num_codes=8", "prior.trunk.width=8",
         "prior.trunk.blocks=1", "prior.head.width=8")  # fmt: skip
ACTOR = ("agent=actor_critic", "agent.learner.network.width=8", "agent.learner.network.reader.channels=4",
         "agent.learner.rounds=1", "agent.learner.dream.horizon=2", "agent.learner.dream.reuse=1")  # fmt: skip


def record(seed: int, steps: int = 6) -> Episode:
    """A recording of noise, all of whose bytes differ."""
    random = np.random.default_rng(seed)
    frames = random.integers(0, 256, (steps + 1, *SPEC.frame_shape), np.uint8)
    rewards = random.normal(size=steps).astype(np.float32)
    return Episode.from_steps(frames, random.integers(2, size=steps), rewards, bool(seed % 2), not seed % 2)


def make_store(folder: Path, episodes: int = 6) -> EpisodeStore:
    with EpisodeStore.writer(folder, SPEC) as store:
        for seed in range(episodes):
            store.append(record(seed), held_out=seed == 1, key=f"noise/{seed}")
    return EpisodeStore.open(folder)


def make_run(root: Path) -> Path:
    """An untrained run of the corridor with its data, ``root/run`` and ``root/data``."""
    make_store(root / "data")
    config = compose_config([*ENV, *SMALL, f"data={root / 'data'}", f"runs={root}", "run=run"])
    return save_untrained(config, SPEC)


def digest(*parts: Any) -> str:
    """Of arrays, tensors and plain values, with their types and shapes."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, torch.Tensor):
            part = part.detach().cpu().float().numpy()
        if isinstance(part, np.ndarray):
            total.update(f"{part.dtype}{part.shape}".encode() + part.tobytes())
        else:
            total.update(repr(part).encode())
    return total.hexdigest()


def digest_episode(episode: Episode) -> str:
    return digest(episode.frames, episode.actions, episode.rewards, episode.terminated, episode.truncated)
