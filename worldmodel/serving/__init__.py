"""Interactive dreams, served to a browser. An optional extra: ``pip install 'worldmodel[play]'``."""

from importlib.util import find_spec

from worldmodel.errors import ConfigError

if missing := [name for name in ("starlette", "uvicorn", "websockets") if find_spec(name) is None]:
    raise ConfigError(f"play needs {', '.join(missing)}: pip install 'worldmodel[play]'")
