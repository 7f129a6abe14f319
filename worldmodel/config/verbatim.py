"""Keeps texts as they were typed: Hydra reads 1e3 as 1000.0, 1_0 as 10, and null in a list of names as None."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args, get_origin

from worldmodel.config.checks import find, parameters, receiver
from worldmodel.errors import ConfigError

_ENTRY = re.compile(r"""\s*('(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|[^,'"\[\]{}]+)\s*(?:,|$)""")


def keep_texts(config: Any, overrides: Sequence[str], settings: type) -> None:
    """Replace values of composed settings that should be texts, and were read as something else, by what was typed.

    ``settings``: the dataclass of settings that are in no group.
    """
    from omegaconf import OmegaConf

    for override in overrides:
        key, equals, typed = override.partition("=")
        key = key.lstrip("+")
        if not equals or key.startswith("~") or "@" in key:
            continue
        value = OmegaConf.select(config, key)
        value = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
        text = _as_typed(value, typed.strip())
        if text == value:
            continue
        types = list(_types(_annotation(OmegaConf.to_container(config), key.split("."), settings)))
        textual = str in types and not any(each in types for each in (int, float, bool, Any))
        if textual and isinstance(value, list) == any(get_origin(each) is Sequence for each in types):
            OmegaConf.update(config, key, text)


def _as_typed(value: Any, typed: str) -> Any:
    """The text of a number, of true or false, and of the entries of a list or a mapping; another value as it is."""
    if isinstance(value, (int, float)):
        return typed
    entries = [entry.strip() for entry in _ENTRY.findall(typed[1:-1])]
    plain = (type(None), int, float)
    if isinstance(value, list) and typed.startswith("[") and len(entries) == len(value):
        return [entry if isinstance(own, plain) else own for own, entry in zip(value, entries, strict=True)]
    if isinstance(value, dict) and typed.startswith("{"):
        pairs = {name.strip(): text.strip() for name, _, text in (entry.partition(":") for entry in entries)}
        return {name: pairs.get(name, own) if isinstance(own, plain) else own for name, own in value.items()}
    return value


def _annotation(config: Any, path: Sequence[str], settings: type) -> Any:
    """The annotation of the parameter that a setting sets, or of the mapping that it is in; None if it is not known."""
    target, annotation, node = settings, None, config
    for part in path:
        node = node if isinstance(node, dict) else {}
        target = node.get("_target_", target)
        try:
            known = None if target is None else parameters(find(target, part)).types.get(part)
        except ConfigError:  # which is reported when it is built
            return None
        annotation = known or annotation
        target, node = receiver(annotation, node.get("id")), node.get(part)
    return annotation


def _types(annotation: Any) -> Iterator[Any]:
    """The types in an annotation; of a mapping, those of its values."""
    yield annotation
    parts = get_args(annotation)
    for each in parts[1:] if get_origin(annotation) is Mapping else parts:
        yield from _types(each)
