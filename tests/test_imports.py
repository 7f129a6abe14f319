"""Imports go one way between the packages and have no cycles. The source is read; nothing is executed."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAPPED = ("envs", "agents", "configs")  # folders of the repository that are subpackages of worldmodel
COMMANDS = (
    "collect",
    "train",
    "dream",
    "sample",
    "speak",
    "convert",
    "codec",
    "evaluate",
    "export",
    "play",
    "quickstart",
)
AGENT_COMMANDS = ("train", "evaluate", "compare")

# A module may import from its own layer and from those above it, never from one below.
LAYERS = (
    ("types", "errors", "util"),
    ("config",),
    ("nn", "likelihoods"),
    ("quantizers",),
    ("heads",),
    ("tokenizers", "priors"),
    ("data", "recording", "training"),
    ("runs", "world", "dreaming", "media", "evaluation"),
    ("serving", "speech"),
    ("exporting",),
    tuple(command for command in COMMANDS if command != "quickstart"),
    ("envs", "agents"),
    ("__main__", "configs", "quickstart"),  # the quickstart calls the others as a user does
)
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names}

# The only files that may import each of these packages.
SETTINGS_READERS = (
    "worldmodel/config/",
    "worldmodel/runs/",
    *(f"worldmodel/{command}.py" for command in COMMANDS),
    *(f"agents/{name}.py" for name in ("train", "evaluate", "evaluation", "choice", "actor", "loop", "sb3_training")),
)
SOUND = ("worldmodel/speech/",)
SERVED = ("worldmodel/serving/",)
EXPORTED = ("worldmodel/exporting/",)
RESERVED = {
    "moviepy": ("worldmodel/media",),
    "PIL": ("worldmodel/media", "worldmodel/data/pictures.py", "worldmodel/data/sources/images.py"),
    "imageio_ffmpeg": ("worldmodel/media", "worldmodel/data/sources/dmlab.py"),
    "pickle": ("worldmodel/data/sources/cifar10.py",),  # the published format; read by a restricted unpickler
    "cloudpickle": ("worldmodel/recording/pool.py",),  # for processes that it starts, never for files
    "soundfile": SOUND,
    "constriction": SOUND,
    "soxr": SOUND,
    "librosa": SOUND,
    "sklearn": SOUND,
    "starlette": SERVED,
    "uvicorn": SERVED,
    "websockets": SERVED,
    "onnx": EXPORTED,
    "onnxruntime": EXPORTED,
    "onnxscript": EXPORTED,
    "ray": ("worldmodel/recording/cluster.py",),
    "minari": ("worldmodel/data/sources/minari.py",),
    "vizdoom": ("envs",),
    "deepmind_lab": ("envs/dmlab_engine.py",),
    "stable_baselines3": ("agents/sb3.py", "agents/sb3_training.py"),
    "tensorboard": ("worldmodel/training",),
    "hydra": SETTINGS_READERS,
    "omegaconf": SETTINGS_READERS,
}
FORBIDDEN = ("dill", "joblib")


def files() -> list[Path]:
    return sorted(path for folder in ("worldmodel", "envs", "agents") for path in (ROOT / folder).rglob("*.py"))


def module_name(path: Path) -> str:
    """worldmodel/nn/convnets.py → worldmodel.nn.convnets, agents/mpc.py → worldmodel.agents.mpc."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts[:-1] if parts[-1] == "__init__" else parts
    return ".".join(parts if parts[0] == "worldmodel" else ("worldmodel", *parts))


def imports(path: Path) -> Iterator[tuple[int, str, bool]]:
    """Line and dotted name of every import, and whether it is executed when the module is imported.

    Relative imports are made absolute; ``from x import y`` counts as x and as x.y.
    """
    tree = ast.parse(path.read_text(), str(path))
    package = module_name(path).split(".")
    package = package if path.name == "__init__.py" else package[:-1]
    late = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.If))
        and not (isinstance(node, ast.If) and "TYPE_CHECKING" not in ast.unparse(node.test))
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        at_import = id(node) not in late
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, at_import) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield node.lineno, module, at_import
            yield from ((node.lineno, f"{module}.{alias.name}", at_import) for alias in node.names)


def part_of(dotted: str) -> str | None:
    """'worldmodel.nn.convnets' → 'nn'; None outside of the package and for the package itself."""
    parts = dotted.split(".")
    return parts[1] if parts[0] == "worldmodel" and len(parts) > 1 and parts[1] in LAYER else None


def is_command(dotted: str) -> bool:
    """'worldmodel.dream' and 'worldmodel.agents.train', and what is imported from them."""
    parts = dotted.split(".")
    return parts[0] == "worldmodel" and (
        (parts[1:] and parts[1] in COMMANDS) or (parts[1:2] == ["agents"] and parts[2:] and parts[2] in AGENT_COMMANDS)
    )


def offences(path: Path) -> list[str]:
    name = path.relative_to(ROOT).as_posix()
    own = part_of(module_name(path))
    found = []
    for line, target, at_import in imports(path):
        where = f"{name}:{line} imports {target}"
        other = part_of(target)
        top = target.split(".")[0]
        if own is not None and other is not None:
            # A command may import the part that its kind of run needs when it is called.
            if LAYER[other] > LAYER[own] and (at_import or LAYER[other] > LAYER["speech"]):
                found.append(f"{where}, which lies below it")
            if name.startswith("worldmodel/") and own != "__main__" and other in ("envs", "agents"):
                found.append(f"{where}: reached only by gymnasium id or Hydra target")
        if is_command(target) and target != module_name(path):
            found.append(f"{where}: nothing imports a command")
        if top in MAPPED:
            found.append(f"{where}: the package is worldmodel.{top}")
        if top in FORBIDDEN:
            found.append(f"{where}: nothing is ever unpickled")
        if top in RESERVED and not name.startswith(RESERVED[top]):
            found.append(f"{where}, which only {', '.join(RESERVED[top])} may")
    return found


@pytest.mark.parametrize("path", files(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_go_one_way(path: Path) -> None:
    assert not offences(path)


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The strongly connected components of more than one module (Tarjan, 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(graph[node]):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            component = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(component) > 1:
                found.append(sorted(component))

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return found


def module_graph(paths: list[Path]) -> dict[str, set[str]]:
    """Who imports whom, late imports and those for type checking included; packages count by what they contain."""
    names = {module_name(path): path for path in paths}
    return {
        name: {target for _, target, _ in imports(path) if target in names and target != name}
        - ({name.rsplit(".", 1)[0]} if "." in name else set())
        for name, path in names.items()
    }


def test_imports_have_no_cycles() -> None:
    assert cycles(module_graph([path for path in files() if path.name != "__init__.py"])) == []


def test_cycles_are_found() -> None:
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [["b", "c"]]
    assert cycles({"a": {"b"}, "b": set()}) == []


def test_every_module_has_a_layer() -> None:
    names = {path.stem for path in (ROOT / "worldmodel").iterdir() if path.suffix == ".py" or path.is_dir()}
    assert names - {"__init__", "__pycache__", "py"} <= set(LAYER)


def test_all_packages_are_installed() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = [ROOT / "worldmodel", *(ROOT / name for name in MAPPED)]
    packages = {module_name(path) for folder in folders for path in folder.rglob("__init__.py")}
    assert set(settings["packages"]) == packages
    assert {f"worldmodel.{name}": name for name in MAPPED}.items() <= settings["package-dir"].items()


@pytest.mark.parametrize(
    ("file", "source", "count"),
    [
        ("worldmodel/nn/x.py", "from worldmodel.quantizers import nearest", 2),
        ("worldmodel/nn/x.py", "from worldmodel import quantizers", 1),
        ("worldmodel/nn/x.py", "from ..quantizers import nearest", 2),
        ("worldmodel/nn/x.py", "def f():\n    import worldmodel.train", 2),
        ("worldmodel/world.py", "import worldmodel.speech.voice", 1),
        ("worldmodel/nn/x.py", "import omegaconf\nimport pickle", 2),
        ("envs/x.py", "from joblib import load", 2),
        ("envs/x.py", "from agents import base", 2),
        (
            "worldmodel/nn/x.py",
            "from worldmodel.types import Spec\nfrom worldmodel.nn.attention import y\nimport torch",
            0,
        ),
        ("worldmodel/train.py", "import worldmodel.agents.explorers", 2),
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
