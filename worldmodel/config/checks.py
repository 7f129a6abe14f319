"""Checks settings against the parameters that they set.

The type and the range of a setting are declared where it is used: on the parameter of the constructor or function that
``_target_`` names, or on the field of a dataclass. See :mod:`worldmodel.util.ranges` for the usual ranges.
"""

import contextlib
import dataclasses
import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Number
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from worldmodel.config.messages import is_list, message
from worldmodel.errors import ConfigError, WorldModelError
from worldmodel.util.ranges import PassedTo

MISSING = "???"  # the value of a setting that must be given and is not yet; the code that needs it reports it
PLAIN = (int, float, str, type(None), Sequence, Mapping)  # what may be checked; objects are not
HYDRA = ("_target_", "_partial_", "_args_", "_recursive_", "_convert_")

Kind = TypeVar("Kind")
Function = TypeVar("Function", bound=Callable[..., Any])


class Parameters(NamedTuple):
    """What may be given by keyword."""

    types: Mapping[str, Any]  # name → annotation
    open: bool  # any other name, too


def check(settings: Any, name: str) -> Any:
    """Plain settings, checked against what they build, with numbers in their plain form (1e3 → 1000).

    ``name`` is the dotted name of the settings. Raises :class:`ConfigError` in one line for a value that is not
    possible and for a name that is not known.
    """
    if is_list(settings):
        return [check(item, f"{name}[{index}]") for index, item in enumerate(settings)]
    if not isinstance(settings, Mapping):
        return settings
    if "_target_" not in settings:
        return {key: check(value, f"{name}.{key}") for key, value in settings.items()}
    rest = {key: value for key, value in settings.items() if key not in HYDRA}
    return {**settings, **check_arguments(find(settings["_target_"], f"{name}._target_"), rest, name)}


def check_arguments(target: Any, settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The same for keyword arguments of a class or function."""
    known = parameters(target)
    for key in settings:
        if key not in known.types and not known.open:
            raise ConfigError(f"there is no {name}.{key}; choose {', '.join(known.types) or 'none'}")
    types = {key: known.types.get(key, Any) for key in settings}
    names = {key: f"{name}.{key}" if name else key for key in settings}
    # Values before what lies deeper, which may refer to them.
    result = {
        key: value if value == MISSING or _builds(value) else check_value(names[key], types[key], value)
        for key, value in settings.items()
    }
    return {key: _deeper(value, types[key], names[key], settings.get("id")) for key, value in result.items()}


def read(kind: type[Kind], settings: Any, name: str = "", **facts: Any) -> Kind:
    """A dataclass from plain settings. Raises :class:`ConfigError`, also for a field that is missing."""
    settings = settings if isinstance(settings, Mapping) else {}
    dot = f"{name}." if name else ""
    values = {**check_arguments(kind, settings, name), **facts}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        if field.name not in values and field.default is field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"the setting {dot}{field.name} is missing; it cannot be left out")
    return kind(**values)


def check_value(name: str, annotation: Any, value: Any) -> Any:
    """One value, in its plain form. Raises :class:`ConfigError`, naming the setting and the choices."""
    from pydantic import ValidationError

    adapter = _adapter(annotation)
    try:
        return value if adapter is None else adapter.validate_python(_plain(value))
    except ValidationError as error:
        raise ConfigError(message(name, value, error)) from None


def check_groups(config: Any, *groups: str) -> None:
    """Checks groups of composed settings that are built later, so that errors are reported before the work begins."""
    from omegaconf import OmegaConf

    for name in groups:
        if (node := config.get(name)) is not None:
            check(OmegaConf.to_container(node, resolve=True), name)


def checked(function: Function) -> Function:
    """Decorates a constructor that is also called without settings: its arguments are checked in every call."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        known = parameters(function).types
        for name, value in signature.bind_partial(*args, **kwargs).arguments.items():
            if name in known and (isinstance(value, PLAIN) or _takes_plain(known[name])):
                scalar = isinstance(value, Number) and hasattr(value, "item")  # of numpy
                check_value(name, known[name], value.item() if scalar else value)
        return function(*args, **kwargs)

    return call  # type: ignore[return-value]


def _takes_plain(annotation: Any) -> bool:
    """Whether all values that an annotation permits are plain ones."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _takes_plain(parts[0])
    if origin in (Union, UnionType):
        return all(map(_takes_plain, parts))
    return origin in (Literal, tuple) or (origin or annotation) in (bool, *PLAIN)


def build(settings: Any, name: str) -> Any:
    """The object that plain settings with a ``_target_`` describe, checked. Raises what :func:`construct` raises."""
    return construct(check(settings, name))


def construct(settings: Any) -> Any:
    """The same for checked settings. An error of the package passes, others become a :class:`ConfigError`."""
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    try:
        return instantiate(settings, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__ or error
        if isinstance(cause, WorldModelError):
            raise cause from None
        reason = " ".join(str(cause).split())
        raise ConfigError(f"cannot build {settings.get('_target_')}: {type(cause).__name__}: {reason}") from error


def find(target: Any, name: str) -> Any:
    """The class or function of a dotted name. Raises :class:`ConfigError`."""
    try:
        return target if callable(target) else pkgutil.resolve_name(str(target))
    except WorldModelError:  # of a package that needs an extra
        raise
    except Exception as error:  # whatever a module raises that cannot be imported
        raise ConfigError(f"{name} is {target!r}, which cannot be imported: {' '.join(str(error).split())}") from error


@functools.cache
def parameters(target: Any) -> Parameters:
    """What a class or function takes by keyword; of a class with ``**kwargs``, also what its bases take."""
    if isinstance(target, type):
        functions = [vars(each)["__init__"] for each in target.__mro__[:-1] if "__init__" in vars(each)]
    else:
        functions = [target]
    types: dict[str, Any] = {}
    passes_on = False
    for function in functions:
        try:
            own = inspect.signature(function).parameters.values()
        except (TypeError, ValueError):  # of a function that is not written in Python
            return Parameters(types, True)
        hints = _hints(target if dataclasses.is_dataclass(target) else function)
        for each in own:
            if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY) and each.name != "self":
                types.setdefault(each.name, hints.get(each.name, Any))
        rest = [each.name for each in own if each.kind is each.VAR_KEYWORD]
        passes_on = bool(rest)
        for mark in marks(hints.get(rest[0])) if rest else ():
            if isinstance(mark, PassedTo):
                types = {**parameters(find(mark.target, rest[0])).types, **types}
                passes_on = False
        if not passes_on:
            break
    return Parameters(types, passes_on)


def _hints(declared: Any) -> dict[str, Any]:
    try:
        return get_type_hints(declared, include_extras=True)
    except (NameError, TypeError, AttributeError):  # some names can only be resolved by a type checker
        hints = {}
        for name, annotation in getattr(declared, "__annotations__", {}).items():
            with contextlib.suppress(NameError, TypeError, AttributeError):
                known = getattr(declared, "__globals__", {})
                hints[name] = eval(annotation, known) if isinstance(annotation, str) else annotation
        return hints


def _deeper(value: Any, annotation: Any, name: str, id: Any) -> Any:
    """A value whose parts are checked, too: what is built from it, or the arguments that it passes on."""
    if _builds(value):
        return check(value, name)
    target = receiver(annotation, id) if isinstance(value, Mapping) else None
    return value if target is None else check_arguments(target, value, name)


def receiver(annotation: Any, id: Any) -> Any:
    """What receives a mapping as keyword arguments; None for another annotation, and for what is not installed."""
    for mark in marks(annotation):
        if isinstance(mark, PassedTo):  # what cannot be imported is reported where it is used
            with contextlib.suppress(Exception if mark.by_id else ConfigError):
                return _environment(id) if mark.by_id else find(mark.target, "")
    return None


def _environment(id: Any) -> Any:
    """The constructor of a gymnasium environment. Raises whatever its module and gymnasium raise."""
    import gymnasium

    module, _, name = str(id).rpartition(":")
    if module:
        importlib.import_module(module)
    entry = gymnasium.spec(name).entry_point
    return find(str(entry).replace(":", ".") if isinstance(entry, str) else entry, "")


def _builds(value: Any) -> bool:
    """Whether there is something to build in a value."""
    if isinstance(value, Mapping):
        return "_target_" in value or any(map(_builds, value.values()))
    return is_list(value) and any(map(_builds, value))


def marks(annotation: Any) -> Iterator[Any]:
    """The metadata of an annotation, also within a union."""
    if get_origin(annotation) is Annotated:
        yield from annotation.__metadata__
    for each in get_args(annotation):
        yield from marks(each)


@functools.cache
def _adapter(annotation: Any) -> Any:
    """Checks values of a type; None for a type that permits anything."""
    from pydantic import ConfigDict, PydanticUserError, TypeAdapter

    if annotation is Any:
        return None
    config = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
    try:
        return TypeAdapter(annotation, config=config)
    except (PydanticUserError, NameError):
        return None


def _plain(value: Any) -> Any:
    """Whole numbers as integers, lists as tuples, which are both strict enough for pydantic."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if is_list(value):
        return tuple(map(_plain, value))
    return {key: _plain(item) for key, item in value.items()} if isinstance(value, Mapping) else value
