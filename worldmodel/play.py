"""Serve a page for the browser, in which the dream of a run is played by keyboard. Without run=…, it
is the latest run of an environment. Ctrl-C ends the server.

Only programs on this computer can connect. With another --host, other computers can connect, too,
if they send the token that is printed as a part of the address. With --beside, the environment of
the run is shown under the same actions. With agent=mpc, or in a run that has an actor, an agent
can choose the actions.

  python -m worldmodel.play run=my_way_home-1 --open
"""

import argparse
import functools
import gc
import secrets
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Le

from worldmodel.config.cli import Config, compose_config
from worldmodel.config.entry_point import entry_point
from worldmodel.config.flags import add_number

Port = Annotated[int, Ge(0), Le(65535)]


def add_flags(parser: argparse.ArgumentParser) -> None:
    add_number(parser, "--port", Port, "port of the server; 0: any free port (8765)", 8765)
    parser.add_argument("--host", default="127.0.0.1", help="address at which the server listens (127.0.0.1)")
    parser.add_argument("--beside", action="store_true", help="show the environment next to the dream")
    parser.add_argument("--open", action="store_true", help="open the page in the browser")


@entry_point("play", __doc__, add_flags)
def main(args: argparse.Namespace, config: Config) -> None:
    """Load the run, serve the page."""
    from worldmodel.serving import check_extra

    check_extra()

    from worldmodel.runs.folder import PRIOR, given_data, open_episodes  # only now, since it imports torch
    from worldmodel.runs.kind import Kind, choose_run
    from worldmodel.serving.app import Limits, Server
    from worldmodel.serving.batching import Batcher
    from worldmodel.serving.dreams import Dreamer
    from worldmodel.serving.listen import LOOPBACK, address, is_loopback, listen, open_port
    from worldmodel.serving.simulator import environment_of
    from worldmodel.world import WorldModel

    run = choose_run(args.overrides, config, PRIOR, Kind.WORLD)
    local = is_loopback(args.host)
    with open_port(args.host, args.port) as opened:
        world = WorldModel.load(run, device=config.device)
        store = open_episodes(run, world.spec, given_data(args.overrides, config))
        token = None if local else secrets.token_urlsafe(16)
        guard = {"hosts": {*LOOPBACK, args.host.lower()} if local else None, "token": token}
        limits = Limits()
        make_env = environment_of(run, world.spec) if args.beside else None
        make_agent = agent_of(args.overrides, config, run)
        server = Server(run.name, world.spec, Batcher(Dreamer(world, store)), guard, limits, make_env, make_agent)
        url = address(args.host, opened.getsockname()[1], token)
        print(f"run       {run}\nplay at   {url}\nCtrl-C ends it", flush=True)
        listen(server.app, opened, url, limits.message_bytes, args.open)
        server.close()
        gc.freeze()  # the last search for garbage would delay the end by most of a second


def agent_of(overrides: Sequence[str], config: Config, run: Path) -> Callable[[], Any] | None:
    """A constructor of the agent that the command line names, or else of the run's actor; None without either.

    Raises :class:`ConfigError` for settings that cannot be used.
    """
    from omegaconf import OmegaConf

    from worldmodel.config.checks import check, construct

    if not any(word.lstrip("+").startswith("agent") for word in overrides):
        if not (run / "agent.safetensors").is_file():
            return None
        config = compose_config(["agent=actor_critic"])
    settings: Any = OmegaConf.to_container(config.agent, resolve=True)
    settings.pop("learner", None)
    if "run" in settings:
        settings["run"] = str(run)
    return functools.partial(construct, check(settings, "agent"))


if __name__ == "__main__":
    sys.exit(main())
