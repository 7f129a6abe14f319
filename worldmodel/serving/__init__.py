"""Interactive dreams, served to a browser. An optional extra: ``pip install 'worldmodel[play]'``.

The page itself, the keys of actions and the moments of a dream need no extra: ``export --to web`` uses them, too.
"""

from importlib.util import find_spec

from worldmodel.errors import ConfigError


def check_extra() -> None:
    """Raises :class:`ConfigError` unless the packages of the server are installed."""
    if missing := [name for name in ("starlette", "uvicorn", "websockets") if find_spec(name) is None]:
        raise ConfigError(f"play needs {', '.join(missing)}: pip install 'worldmodel[play]'")
