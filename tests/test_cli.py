"""The shared command line: overrides among flags, one-line errors, exit codes, and the dispatcher."""

from __future__ import annotations

import argparse
import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig

import worldmodel
from worldmodel.__main__ import AGENT_COMMANDS, COMMANDS
from worldmodel.__main__ import main as dispatch
from worldmodel.config.cli import compose_config
from worldmodel.config.entry_point import run_entry_point
from worldmodel.errors import ConfigError, DataError


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--horizon", type=int, default=5)


def call(main: Callable[[argparse.Namespace, DictConfig], None], *argv: str) -> int:
    return run_entry_point(main, "toy", "A toy command.", add_flags, argv)


def test_overrides_stand_anywhere_among_flags() -> None:
    seen = []
    assert call(lambda args, config: seen.append((args, config)), "seed=3", "--horizon", "7", "run=mine") == 0
    ((args, config),) = seen
    assert (args.horizon, config.seed, config.run) == (7, 3, "mine")


def test_groups_can_be_chosen_and_values_are_resolved() -> None:
    config = compose_config(["env=vizdoom/health_gathering"])
    assert config.env.name == "health_gathering"
    assert config.data == "data/health_gathering"


def test_config_is_printed_and_nothing_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(lambda args, config: pytest.fail("ran"), "--config", "seed=11") == 0
    assert "seed: 11" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["sed=3"], "'sed'"),
        (["env=nowhere"], "nowhere"),
        (["forward"], "'forward' is neither a flag nor key=value; see python -m worldmodel.toy --help"),
        (["seed=[1"], "seed=[1"),
        (["seed=1" + "0" * 5000], "seed=1"),
        (["env=nowhere"], "there is no env 'nowhere'; choose atari/any, atari/boxing, "),
        (["env=vizdoom"], "gym, minigrid/any, "),
        (["env=null"], "vizdoom/basic, vizdoom/basic_audio, "),
        (
            ["tokenizer=vqgan"],
            "no tokenizer 'vqgan'; choose codec, fsq, gumbel, jukebox, phonemes, speech, speech_conv, speech_mel, ",
        ),
        (["prior=lstm"], "there is no prior 'lstm'; choose captions, codec, conv, "),
        (["explorer=curious"], "there is no explorer 'curious'; choose actor, dmlab, novelty, script, sticky, "),
        (["training=long"], "there is no training 'long'; choose default\n"),
        (["seed=abc"], "seed is 'abc'; it must be a whole number"),
        (["seed=-1"], "seed is -1; it must be at least 0"),
        (["seed=1.5"], "seed is 1.5; it must be a whole number"),
        (["seed=true"], "seed is True; it must be a whole number"),
        (["~seed"], "the setting seed is missing"),
        (["data="], "data is ''; it must be a text"),
        (["runs=null"], "runs is null; it must be a text"),
        (["collect.steps=0"], "collect.steps is 0; it must be at least 1"),
        (["collect.workers=0"], "collect.workers is 0; it must be at least 1"),
        (["collect.longest=0"], "collect.longest is 0; it must be at least 1"),
    ],
)
def test_bad_overrides_are_one_line_and_exit_2(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(lambda args, config: pytest.fail("ran"), *argv) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and message in err


@pytest.mark.parametrize("argv", [["--horzion", "3"], ["--horizon"], ["--horizon", "far"]])
def test_malformed_flags_are_one_line_and_exit_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert call(lambda args, config: pytest.fail("ran"), *argv) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and "see python -m worldmodel.toy --help" in err


def raising(error: BaseException) -> Callable[[argparse.Namespace, DictConfig], None]:
    def main(args: argparse.Namespace, config: DictConfig) -> None:
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (DataError("no episodes\nin data"), 2, "error: no episodes; in data\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "runs/x"),
            2,
            "error: No space left on device (runs/x); what was",
        ),
        (KeyboardInterrupt(), 130, "\ninterrupted; what was already written is kept"),
        (BrokenPipeError(), 0, ""),
    ],
)
def test_errors_become_one_line_and_a_code(
    error: BaseException, code: int, message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "close", lambda: None)  # closed on a broken pipe; pytest still needs it
    assert call(raising(error)) == code
    assert capsys.readouterr().err.startswith(message)


def test_faults_of_the_program_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        call(raising(ZeroDivisionError()))


def test_numbers_and_names_come_in_their_plain_form() -> None:
    config = compose_config(["collect.steps=1e4", "run=7"])
    assert isinstance(config.collect.steps, int) and config.collect.steps == 10_000
    assert config.run == "7"


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("[enforce fail at alloc_cpu.cpp:121] can't allocate memory:\nyou tried")]
)
def test_too_little_memory_is_one_line(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(raising(error)) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: out of memory") and err.count("\n") == 1 and "training.prior.batch" in err


def test_the_console_script_finds_modules_of_the_current_folder(tmp_path: Path) -> None:
    (tmp_path / "here.py").write_text("import gymnasium\ngymnasium.register('Here-v0', 'here:missing')\n")
    script = "import sys; sys.path[0] = sys.prefix; from worldmodel.__main__ import main; sys.exit(main())"
    argv = ["collect", "env=gym", "env.id=here:Here-v0"]
    done = subprocess.run(
        [sys.executable, "-c", script, *argv],
        capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    )  # fmt: skip
    assert done.returncode == 2 and "missing" in done.stderr and "not installed" not in done.stderr


def test_compose_reports_the_override() -> None:
    with pytest.raises(ConfigError, match=r"^cannot apply training\.tokenizer\.stepz=1: "):
        compose_config(["training.tokenizer.stepz=1"])


def test_dispatcher_lists_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in COMMANDS)
    assert dispatch([]) == 2
    assert dispatch(["--version"]) == 0
    assert worldmodel.__version__ in capsys.readouterr().out


def test_dispatcher_names_the_choices(capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch(["dreem"]) == 2
    assert capsys.readouterr().err == (
        "error: unknown command 'dreem'; choose quickstart, collect, train, dream, play, sample, speak, convert, "
        "codec, evaluate, export, agent\n"
    )
    assert dispatch(["agent", "play"]) == 2
    assert capsys.readouterr().err == "error: unknown command 'play'; choose train, evaluate, compare\n"


EVERY = [*(name for name in COMMANDS if name != "agent"), *(f"agents.{name}" for name in AGENT_COMMANDS)]
SLOW = ("torch", "hydra", "omegaconf", "lightning_fabric", "matplotlib", "safetensors", "soundfile", "scipy")


@pytest.mark.parametrize("command", EVERY)
def test_every_command_has_help_that_fits_on_a_screen(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as caught:
        dispatch([*command.replace("agents.", "agent ").split(), "--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: python -m worldmodel.{command} ")
    lines = out.splitlines()
    assert len(lines) <= 40 and max(map(len, lines)) <= 100
    assert command == "agents.compare" or ("--config " in out and "overrides of settings" in out)


@pytest.mark.parametrize("command", EVERY)
def test_help_does_not_wait_for_slow_libraries(command: str) -> None:
    code = (
        "import importlib, sys\n"
        f"main = importlib.import_module('worldmodel.{command}').main\n"
        "assert main(['--no-such-flag']) == 2\n"
        "try: main(['--help'])\n"
        f"except SystemExit: print([name for name in {SLOW} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path.cwd())
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stdout + done.stderr


def test_operands_stand_anywhere_and_may_look_like_overrides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=b.wav").touch()
    seen = []

    def main(args: argparse.Namespace, config: DictConfig) -> None:
        seen.append((args.operands, args.overrides, args.horizon))

    argv = ["seed=3", "encode", "--horizon", "7", "a=b.wav", "run=mine"]
    assert run_entry_point(main, "toy", "", add_flags, argv, operands=("ACTION", "FILE")) == 0
    assert seen == [(["encode", "a=b.wav"], ["seed=3", "run=mine"], 7)]


def test_a_flag_that_moved_names_its_new_place(capsys: pytest.CaptureFixture[str]) -> None:
    moved = {"--convert": "a command: python -m worldmodel.convert FILE"}
    assert run_entry_point(raising(AssertionError()), "toy", "", argv=["--convert=in.wav"], moved=moved) == 2
    assert capsys.readouterr().err == "error: --convert is now a command: python -m worldmodel.convert FILE\n"


def test_module_runs_as_a_program() -> None:
    done = subprocess.run([sys.executable, "-m", "worldmodel", "nap"], capture_output=True, text=True, cwd=Path.cwd())
    assert done.returncode == 2 and done.stderr.count("\n") == 1
