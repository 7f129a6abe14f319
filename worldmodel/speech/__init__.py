"""Speech: sources, networks, codec and scores. An optional extra: ``pip install 'worldmodel[speech]'``."""

from importlib.util import find_spec

from worldmodel.errors import ConfigError

if missing := [name for name in ("soundfile", "soxr", "constriction", "librosa") if find_spec(name) is None]:
    raise ConfigError(f"speech needs {', '.join(missing)}: pip install 'worldmodel[speech]'")
