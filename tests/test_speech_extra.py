"""Without the packages of the extra, everything but speech works, and speech names the command that installs it."""

from __future__ import annotations

import subprocess
import sys

import pytest

LINE = "error: speech needs soundfile, librosa: pip install 'worldmodel[speech]'\n"


def without(code: str, *words: str) -> subprocess.CompletedProcess[str]:
    hidden = "import sys; sys.modules['soundfile'] = sys.modules['librosa'] = None; "
    return subprocess.run([sys.executable, "-c", hidden + code, *words], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    "words", [["source=vctk", "source.path=."], ["source=timit", "source.path=."], ["source=speech", "source.path=."]]
)
def test_a_source_of_speech_names_the_extra(words: list[str]) -> None:
    found = without("from worldmodel.collect import main; sys.exit(main())", *words)
    assert (found.returncode, found.stderr) == (2, LINE)


def test_a_model_of_speech_names_the_extra() -> None:
    code = """
from worldmodel.config.cli import compose_config
from worldmodel.runs.models import build_tokenizer
from worldmodel.types import Spec
from worldmodel.errors import ConfigError
try:
    build_tokenizer(compose_config(["tokenizer=speech_mel"]), Spec("vctk", (1, 640), ("p225",), 25.0))
except ConfigError as error:
    print("error:", error)
"""
    assert without(code).stdout == LINE
