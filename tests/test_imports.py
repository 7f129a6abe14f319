"""Imports point one way between the rooms of the house; read from the source, nothing is executed."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(path for folder in ("worldmodel", "envs", "agents") for path in (ROOT / folder).rglob("*.py"))

# A file may import from its own row and those above it, never from one below.
ROWS = (
    ("types", "errors", "files", "interrupts", "settings", "cli", "bars", "actions", "plots", "mel", "mulaw", "pitch"),
    ("nn",),
    ("quantizers",),
    ("tokenizers",),
    ("priors",),
    ("data", "training"),
    (
        *("run", "resume", "rollout", "media", "evaluation", "scenes", "still_dream", "sound_dream", "voice"),
        *("codec", "bitstream", "entropy", "entropy_prior", "codec_run", "sound_codec"),
    ),
    ("collect", "train", "dream", "evaluate", "export", "quickstart"),
    ("__main__",),
)
ROW = {room: row for row, rooms in enumerate(ROWS) for room in rooms}
ENTRY_POINTS = ROWS[-2] + ROWS[-1]
SETTINGS = ("hydra", "omegaconf")
# The only files that may see each of these packages.
RESERVED = {
    "moviepy": ("worldmodel/media",),
    "PIL": ("worldmodel/media", "worldmodel/data/pictures.py", "worldmodel/data/sources/images.py"),
    "imageio_ffmpeg": ("worldmodel/media", "worldmodel/data/sources/dmlab.py"),
    "pickle": ("worldmodel/data/sources/cifar10.py",),  # as the set is published; under stand-ins that run nothing
    "soundfile": ("worldmodel/data/sources/sound.py", "worldmodel/media/sound.py"),
    "constriction": ("worldmodel/entropy.py",),
    "soxr": ("worldmodel/data/sources/sound.py",),
    "minari": ("worldmodel/data/sources/minari.py",),
    "vizdoom": ("envs",),
    "deepmind_lab": ("envs/dmlab_engine.py",),  # by importlib, when an environment is made
    "stable_baselines3": ("agents/sb3.py", "agents/sb3_training.py"),
    "tensorboard": ("worldmodel/training",),
    **{
        name: (
            "worldmodel/cli.py",
            "worldmodel/run.py",
            "worldmodel/resume.py",
            *(f"worldmodel/{e}.py" for e in ENTRY_POINTS),
            *(f"agents/{e}.py" for e in ("train", "evaluate", "choice", "run", "loop", "sb3", "sb3_training")),
        )
        for name in SETTINGS
    },
}
FORBIDDEN = ("dill", "cloudpickle", "joblib")


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every import of a file, relative ones made absolute; names of `from x import y` count."""
    package = path.relative_to(ROOT).with_suffix("").parts
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            yield node.lineno, module
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def room(dotted: str) -> str | None:
    """'worldmodel.nn.convnets' → 'nn'; None outside of the package and for the package itself."""
    parts = dotted.split(".")
    return parts[1] if parts[0] == "worldmodel" and len(parts) > 1 and parts[1] in ROW else None


def offences(path: Path) -> list[str]:
    name = path.relative_to(ROOT).as_posix()
    own = room(name.removesuffix(".py").replace("/", "."))
    found = []
    for line, target in imports(path):
        where = f"{name}:{line} imports {target}"
        other = room(target)
        if name.startswith("worldmodel/") and own is not None and other is not None:
            if ROW[other] > ROW[own]:
                found.append(f"{where}, which lies below it")
            if own != other and own in ENTRY_POINTS and other in ENTRY_POINTS and own not in ("quickstart", "__main__"):
                found.append(f"{where}: entry points do not lean on one another")
        if name.startswith("worldmodel/") and target.split(".")[0] in ("envs", "agents"):
            found.append(f"{where}: reached only by gymnasium id or Hydra target")
        top = target.split(".")[0]
        if top in FORBIDDEN:
            found.append(f"{where}: nothing is ever unpickled")
        if top in RESERVED and not name.startswith(RESERVED[top]):
            found.append(f"{where}, which only {', '.join(RESERVED[top])} may")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_point_one_way(path: Path) -> None:
    assert not offences(path)


def test_every_module_has_a_room() -> None:
    names = {path.stem for path in (ROOT / "worldmodel").iterdir() if path.suffix == ".py" or path.is_dir()}
    assert names - {"__init__", "__pycache__", "py"} <= set(ROW)


@pytest.mark.parametrize(
    ("file", "source", "count"),
    [
        ("worldmodel/nn/x.py", "from worldmodel.quantizers import nearest", 2),
        ("worldmodel/nn/x.py", "from worldmodel import quantizers", 1),
        ("worldmodel/nn/x.py", "from ..quantizers import nearest", 2),
        ("worldmodel/nn/x.py", "def f():\n    import worldmodel.training.fit", 1),
        ("worldmodel/nn/x.py", "import omegaconf\nimport pickle", 2),
        ("envs/x.py", "from joblib import load", 2),
        (
            "worldmodel/nn/x.py",
            "from worldmodel.types import Spec\nfrom worldmodel.nn.attention import y\nimport torch",
            0,
        ),
        ("worldmodel/train.py", "import agents.explorers", 1),
        ("envs/x.py", "import worldmodel.types\nimport PIL.Image", 1),
    ],
)
def test_offences_are_found(
    file: str, source: str, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(source)
    assert len(offences(path)) == count
