"""Random values for every setting of every YAML file, as the command line gives them."""

import argparse
import itertools
import os
import random
import resource
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from benchmarks.faults.corridor import ID
from benchmarks.faults.judge import Outcome, Result, one_line_error, run_command
from benchmarks.faults.world import SPEC, SPEECH
from worldmodel.agents.choice import agent_name_of, find_learner
from worldmodel.agents.loop import AgentStage
from worldmodel.config.checks import check
from worldmodel.config.cli import Config, choices
from worldmodel.config.entry_point import entry_point
from worldmodel.runs.data import env_maker
from worldmodel.runs.resume import flatten
from worldmodel.runs.stages import stage_settings, stages_of
from worldmodel.runs.training import make_fabric, rehearse
from worldmodel.types import Spec

VALUES = ("-1", "0", "1", "2", "3", "0.5", "-0.5", "1e30", "1e400", ".nan", ".inf", "-.inf", "1000000000000000", "null",
          "true", "false", "[]", "[1]", "[a,b]", "[[1,2],[3]]", "{}", "{a: 1}", "''", "abc", "'a b'", "'é写'", "../..",
          "/nowhere", "???", "'${seed}'", "${nothing}", "a.b.C", "os.system", "[", "{a", "'", "=", "%", "1,2", "0x10",
          "1_000", "'\\n'", "~", "{_target_: os.system}", "[-1,0]", "[0.5,null]", "1.5", "[1,1,1]")  # fmt: skip
ROOT = "config.yaml"
TRAINED = ("tokenizer", "prior", "training", "experiment")  # groups whose models are built and tried
PARTNERS = {
    "prior=gaussian": "tokenizer=vae", "prior=hierarchy": "tokenizer=vqvae2", "prior=speech": "tokenizer=speech",
    "prior=jukebox": "tokenizer=jukebox", "prior=codec": "tokenizer=codec",
    "tokenizer=codec": "prior=codec", "tokenizer=jukebox": "prior=jukebox", "tokenizer=vae": "prior=gaussian",
    "tokenizer=vimco": "prior=pixelcnn", "tokenizer=vqvae2": "prior=hierarchy",
    "tokenizer=vqvae_8x8x10": "prior=pixelcnn",
    "env=gym": f"env.id={ID}", "env=atari/any": "env.kwargs.game=pong", "env=vizdoom/any": "env.kwargs.scenario=basic",
    "env=dmlab/level": "env.kwargs.level=tests/empty", "env=minigrid/any": "env.kwargs.task=Empty-8x8",
    "env=miniworld/any": "env.kwargs.task=Hallway", "explorer=actor": "explorer.run=tiny",
}  # fmt: skip
"""What a choice needs beside it."""
LARGE = Spec("tiny", (3, 84, 84), SPEC.action_names, 10.0)  # frames of a second tokenizer
MEMORY = 6 * 2**30  # bytes that settings may ask for


@entry_point("train", __doc__)
def prepare(args: argparse.Namespace, config: Config) -> None:
    """Build and check all that a command builds and checks before its work."""
    groups = [word.lstrip("+").partition("=")[0].split(".")[0] for word in args.overrides]
    names = ("source", "explorer", "agent")
    settings: dict[str, Any] = {name: OmegaConf.to_container(config[name], resolve=True) for name in names}
    settings["agent"].pop("learner", None)
    for name in {*groups} & {*settings}:
        check(settings[name], name)
    if "env" in groups:
        env_maker(config)
    if "learner" in config.agent:
        find_learner(config, agent_name_of(args.overrides, config))
    stage_settings(config, AgentStage)
    if {*groups} & {*TRAINED}:
        spec = SPEECH if "speech" in str(config.tokenizer) else SPEC if config.get("second") is None else LARGE
        make_fabric(config)
        rehearse(config, spec, stages_of(config))


def inject(scratch: Path, rng: random.Random) -> Iterator[Result]:
    """Change one setting of every YAML file in turn; what is refused writes nothing."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    yamls = [(group, name) for group, names in choices().items() for name in names]
    keys = {(group, name): keys_of(group, name) for group, name in [*yamls, ("", ROOT)]}
    for group, name in itertools.cycle(keys):
        key, value = rng.choice(keys[group, name]), rng.choice(VALUES)
        choice = [f"{group}={name}"] if group else []
        partners = [PARTNERS[word] for word in choice if word in PARTNERS]
        if group == "source" and name != "env":
            partners.append("source.path=.")
        words = ["device=cpu", *choice, *partners]
        yield attempt(group or ROOT, [*words, f"{key}={value}"])


def attempt(part: str, words: list[str]) -> Result:
    """Prepare what the settings describe, in an empty folder."""
    try:
        code, errors = run_command(prepare, *words)
    except Exception as error:
        return Result(part, Outcome.LOST, f"{' '.join(words)}: {type(error).__name__}: {error}")
    if written := os.listdir():
        return Result(part, Outcome.LOST, f"{' '.join(words)}: wrote {', '.join(written)}")
    if code == 0:
        return Result(part, Outcome.SAME)
    clear = one_line_error(code, errors)
    return Result(part, Outcome.REFUSED if clear else Outcome.LOST, f"{' '.join(words)}: {errors}")


def keys_of(group: str, name: str) -> list[str]:
    """The settings in a file of configs/, by their names on the command line."""
    root = Path(str(files("worldmodel.configs")))
    content = OmegaConf.to_container(OmegaConf.load(root / group / f"{name}.yaml" if group else root / name))
    assert isinstance(content, dict)
    content.pop("defaults", None)
    if group == "training":
        content["prior"] |= OmegaConf.to_container(OmegaConf.load(root / "stage.yaml"))
    prefix = "" if group in ("", "experiment") else f"{group}."
    return [f"{prefix}{key}" for key in flatten(content) if key] or [f"{group}.name"]
