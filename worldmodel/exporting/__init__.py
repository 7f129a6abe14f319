"""A world model as ONNX graphs, and a page that runs them. An optional extra: ``pip install 'worldmodel[onnx]'``."""

from importlib.util import find_spec

from worldmodel.errors import ConfigError


def check_extra() -> None:
    """Raises :class:`ConfigError` unless the packages that write and run graphs are installed."""
    if missing := [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]:
        raise ConfigError(f"export --to onnx and --to web need {', '.join(missing)}: pip install 'worldmodel[onnx]'")
