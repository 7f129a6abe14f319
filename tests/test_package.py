"""The installed package provides one name, whatever folders lie in the current directory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FORGET_INSTALLATION = "import sys; sys.meta_path = [f for f in sys.meta_path if 'editable' not in str(f).lower()]"
CODE = """
from pathlib import Path
import worldmodel.agents, worldmodel.configs, worldmodel.envs
from worldmodel.config.cli import compose_config
print(compose_config(["env=vizdoom/basic"]).env.name)
print(*(Path(module.__path__[0]).parent for module in (worldmodel.agents, worldmodel.configs, worldmodel.envs)))
"""


@pytest.mark.parametrize("installed", [True, False], ids=["installed", "a checkout that is not installed"])
def test_folders_of_a_user_hide_nothing(installed: bool, tmp_path: Path) -> None:
    for name in ("envs", "agents", "configs"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('the package of the user')")
    path = {} if installed else {"PYTHONPATH": str(ROOT)}
    code = CODE if installed else f"{FORGET_INSTALLATION}\n{CODE}"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, **path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    name, folders = done.stdout.split("\n", 1)
    assert name == "basic"
    if not installed:
        assert set(folders.split()) == {str(ROOT)}


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "2500"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "PASSIVE"}, "None")],
    ids=["default", "a count of the user", "a policy of the user"],
)
def test_idle_threads_leave_their_core_unless_the_user_says_otherwise(given: dict[str, str], expected: str) -> None:
    others = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    code = "import os, worldmodel; print(os.environ.get('GOMP_SPINCOUNT'))"
    done = subprocess.run([sys.executable, "-c", code], env={**others, **given}, capture_output=True, text=True)
    assert done.stdout.strip() == expected, done.stderr
