"""What a tool is: a plain function whose signature and docstring are its schema and its help.

Invariant: everything the model is told about a tool comes from the function; a parameter without
annotation or description is a TypeError at import that names it, so no tool can be half described.
Left out on purpose: coroutines (a tool is synchronous, `ToolBox` runs it in a thread), free-form
objects as arguments.
"""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, NewType, Union, get_args, get_origin, overload

from saccade.backends import KINDS
from saccade.backends.kinds import Backend
from saccade.config import BackendKind
from saccade.geometry import Box, Mask, Point
from saccade.images import ImageView
from saccade.types import BoxFound, MaskFound, PointFound, ToolSpec

__all__ = ["Between", "Kind", "On", "Parameter", "Tool", "XCoordinate", "YCoordinate", "tool"]

XCoordinate = NewType("XCoordinate", float)
"""A place along the width: pixels for the function, the frame's number where a model writes it."""
YCoordinate = NewType("YCoordinate", float)
"""A place along the height: pixels for the function, the frame's number where a model writes it."""

Kind = Literal["image", "box", "point", "x", "y", "number", "integer", "text", "boolean", "choice"]
"""What one argument is to the model."""

PLACES: frozenset[Kind] = frozenset({"box", "point", "x", "y"})
"""Kinds that are converted through the frame of an image."""
RETURNED = (ImageView, str, Box, Mask, Point, BoxFound, MaskFound, PointFound)
"""What a tool may return, alone or in a tuple or list."""

_KINDS: dict[object, Kind] = {
    ImageView: "image",
    Box: "box",
    Point: "point",
    XCoordinate: "x",
    YCoordinate: "y",
    float: "number",
    int: "integer",
    str: "text",
    bool: "boolean",
}
_JSON: dict[Kind, dict[str, Any]] = {
    "image": {"type": "string"},
    "box": {"type": "array", "items": {"type": "number"}, "minItems": 4, "maxItems": 4},
    "point": {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2},
    "x": {"type": "number"},
    "y": {"type": "number"},
    "number": {"type": "number"},
    "integer": {"type": "integer"},
    "text": {"type": "string"},
    "boolean": {"type": "boolean"},
    "choice": {"type": "string"},
}
_ORDER: dict[Kind, str] = {"box": "[x0, y0, x1, y1]", "point": "[x, y]"}
_EXPECTED: dict[Kind, str] = {
    "image": "the name of an image",
    "box": "4 numbers [x0, y0, x1, y1]",
    "point": "2 numbers [x, y]",
    "x": "a number",
    "y": "a number",
    "number": "a number",
    "integer": "a whole number",
    "text": "text in quotes",
    "boolean": "true or false",
}


@dataclass(frozen=True, slots=True)
class Between:
    """Marks a number by the range in which it must lie, both ends included."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise ValueError(f"Between needs low <= high, got {self.low} and {self.high}.")


@dataclass(frozen=True, slots=True)
class On:
    """Marks a box, point or coordinate by its image parameter; needed beside several images."""

    image: str


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a tool, as its signature declares it."""

    name: str
    kind: Kind
    description: str
    many: bool = False
    """Whether it is a list of its kind."""
    required: bool = True
    nullable: bool = False
    """Whether None (JSON null) is accepted."""
    default: Any = None
    """What the function takes where the model leaves it out; meaningless where required."""
    choices: tuple[str, ...] = ()
    between: Between | None = None
    on: str | None = None
    """For a place: the image parameter whose frame its numbers are in."""

    @property
    def expected(self) -> str:
        """What the model must write, in words that follow "must be"."""
        if self.kind == "choice":
            one = "one of " + ", ".join(repr(c) for c in self.choices)
        else:
            one = _EXPECTED[self.kind]
        if self.between is not None:
            one += f" from {self.between.low:g} to {self.between.high:g}"
        whole = f"a list, each {one}" if self.many else one
        return whole + " or null" if self.nullable else whole

    @property
    def schema(self) -> dict[str, Any]:
        """Its JSON schema."""
        one: dict[str, Any] = dict(_JSON[self.kind])
        if self.choices:
            one["enum"] = list(self.choices)
        if self.between is not None:
            one |= {"minimum": self.between.low, "maximum": self.between.high}
        whole: dict[str, Any] = {"type": "array", "items": one} if self.many else one
        if self.nullable:
            whole["type"] = [whole["type"], "null"]
            if "enum" in whole:
                whole["enum"] = [*whole["enum"], None]
        description = self.description
        if self.kind in _ORDER:
            description += f", {'each ' if self.many else ''}as {_ORDER[self.kind]}"
        whole["description"] = description
        if not self.required and self.default is not None:
            whole["default"] = self.default
        return whole


@dataclass(frozen=True, slots=True)
class Tool:
    """A function with the spec derived from it; calling the tool calls the function, in pixels."""

    function: Callable[..., Any]
    spec: ToolSpec
    parameters: tuple[Parameter, ...]
    aliases: tuple[str, ...] = ()
    """Other names under which a model may call it."""
    is_answer: bool = False
    """Whether it ends the episode: dialects read such a call as the answer and no box runs it."""
    needs: tuple[tuple[str, BackendKind], ...] = ()
    """Names of parameters that take a back end, and its kind; `with_backends` fills them."""
    is_view: bool = False
    """Whether it does no more than derive images: its cost is that of their pixels."""
    reads_pixels: bool = False
    """Whether it reads the pixels of what it derives from: how many they are is a cost too."""

    def with_backends(self, backends: Mapping[BackendKind, Backend]) -> Tool:
        """The tool with the back ends that it needs, by kind, bound to it."""
        bound = {parameter: backends[kind] for parameter, kind in self.needs}
        return replace(self, function=functools.partial(self.function, **bound), needs=())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def image_parameter(self) -> str | None:
        """The parameter on whose image returned boxes lie; None unless it is the only one."""
        return _only_image(self.parameters)


@overload
def tool(function: Callable[..., Any], /) -> Tool: ...
@overload
def tool(
    *,
    aliases: Sequence[str] = (),
    version: int = 1,
    is_answer: bool = False,
    is_view: bool = False,
    reads_pixels: bool = False,
) -> Callable[[Callable[..., Any]], Tool]: ...
def tool(
    function: Callable[..., Any] | None = None,
    /,
    *,
    aliases: Sequence[str] = (),
    version: int = 1,
    is_answer: bool = False,
    is_view: bool = False,
    reads_pixels: bool = False,
) -> Tool | Callable[[Callable[..., Any]], Tool]:
    """Makes a `Tool` of a function: name, help and schema come from its signature and docstring.

    Arguments may be `ImageView`, `Box`, `Point`, `XCoordinate`, `YCoordinate`, `float`, `int`,
    `str`, `bool`, a `Literal` of strings, lists of those, and any of these `| None`. Every
    parameter but an `ImageView` needs its description as `Annotated[type, "description"]`. A
    parameter annotated with a kind of back end (`Reader`, `Detector` ...) is not the model's: the
    recipe's choice is given there. It returns `ImageView`, `str`, `Box`, `Mask`, `Point`,
    `BoxFound`, `MaskFound`, `PointFound`, or a tuple or list of those. Raises TypeError, naming the
    parameter, where that does not hold.
    """

    def make(function: Callable[..., Any]) -> Tool:
        name = function.__name__
        description = (inspect.getdoc(function) or "").partition("\n")[0].strip()
        if not description:
            raise TypeError(f"Tool {name} needs a docstring whose first line says what it does.")
        if inspect.iscoroutinefunction(function):
            raise TypeError(
                f"Tool {name} must be a plain function: the tool box runs it in a thread."
            )
        parameters, needs = _parameters(function)
        _check_returned(function, parameters)
        schema = {
            "type": "object",
            "properties": {p.name: p.schema for p in parameters},
            "required": [p.name for p in parameters if p.required],
            "additionalProperties": False,
        }
        spec = ToolSpec(name=name, description=description, schema=schema, version=version)
        return Tool(
            function, spec, parameters, tuple(aliases), is_answer, needs, is_view, reads_pixels
        )

    return make if function is None else make(function)


def _parameters(
    function: Callable[..., Any],
) -> tuple[tuple[Parameter, ...], tuple[tuple[str, BackendKind], ...]]:
    """What the model writes, and which parameters take a back end of which kind."""
    hints = typing.get_type_hints(function, include_extras=True)
    found = []
    needs = []
    for raw in inspect.signature(function).parameters.values():
        where = f"Parameter {raw.name!r} of tool {function.__name__}"
        if raw.kind not in (raw.POSITIONAL_OR_KEYWORD, raw.KEYWORD_ONLY):
            raise TypeError(
                f"{where} must be an ordinary named parameter, it is {raw.kind.description}."
            )
        if raw.name not in hints:
            raise TypeError(f"{where} needs an annotation: Annotated[type, 'description'].")
        if kind := next((k for k, of_kind in KINDS.items() if hints[raw.name] is of_kind), None):
            needs.append((raw.name, kind))
        else:
            found.append(_parameter(where, raw, hints[raw.name]))
    parameters = tuple(found)
    return tuple(_placed(function.__name__, p, parameters) for p in parameters), tuple(needs)


def _parameter(where: str, raw: inspect.Parameter, hint: Any) -> Parameter:
    markers: tuple[Any, ...] = ()
    if get_origin(hint) is Annotated:
        hint, *rest = get_args(hint)
        markers = tuple(rest)
    hint, nullable = _without_none(hint)
    many = get_origin(hint) is list
    if many:
        (hint,) = get_args(hint)
    choices = get_args(hint) if get_origin(hint) is Literal else ()
    kind = "choice" if choices else _KINDS.get(hint)
    if kind is None or not all(isinstance(c, str) for c in choices):
        raise TypeError(
            f"{where} has the type {hint}, which no model can write; use ImageView, Box, Point, "
            "XCoordinate, YCoordinate, float, int, str, bool, a Literal of strings, or a list."
        )
    description = next((m for m in markers if isinstance(m, str)), "").strip()
    if kind == "image" and not description:
        description = (
            "names of images, such as img_0" if many else "name of an image, such as img_0"
        )
    if not description:
        raise TypeError(f"{where} needs a description: Annotated[{raw.annotation}, 'description'].")
    between = next((m for m in markers if isinstance(m, Between)), None)
    if between is not None and kind not in ("number", "integer"):
        raise TypeError(f"{where} can't be marked by {between}: it is no plain number.")
    required = raw.default is inspect.Parameter.empty
    if not required and raw.default is not None and kind in PLACES | {"image"}:
        raise TypeError(
            f"{where} can't have the default {raw.default!r}: what it means depends on the "
            "episode; use None."
        )
    return Parameter(
        name=raw.name,
        kind=kind,
        description=description,
        many=many,
        required=required,
        nullable=nullable,
        default=None if required else raw.default,
        choices=choices,
        between=between,
        on=next((m.image for m in markers if isinstance(m, On)), None),
    )


def _without_none(hint: Any) -> tuple[Any, bool]:
    """`T | None` as (T, True), anything else as it is."""
    if get_origin(hint) not in (Union, types.UnionType):
        return hint, False
    rest = [a for a in get_args(hint) if a is not type(None)]
    return (rest[0], True) if len(rest) == 1 else (hint, False)


def _placed(name: str, parameter: Parameter, parameters: tuple[Parameter, ...]) -> Parameter:
    """The parameter with the image that it lies on, checked."""
    where = f"Parameter {parameter.name!r} of tool {name}"
    if parameter.kind not in PLACES:
        if parameter.on is not None:
            raise TypeError(f"{where} can't lie on an image: it is no box, point or coordinate.")
        return parameter
    on = parameter.on or _only_image(parameters)
    images = [p.name for p in parameters if p.kind == "image" and p.required and not p.many]
    if on not in images:
        raise TypeError(
            f"{where} must say on which image it lies: give the tool one required ImageView "
            "parameter, or mark the place with On(...) for one of several; "
            f"it has {images}, got {parameter.on!r}."
        )
    return replace(parameter, on=on)


def _only_image(parameters: Sequence[Parameter]) -> str | None:
    images = [p for p in parameters if p.kind == "image"]
    return images[0].name if len(images) == 1 and not images[0].many else None


def _check_returned(function: Callable[..., Any], parameters: tuple[Parameter, ...]) -> None:
    name = function.__name__
    hint = typing.get_type_hints(function).get("return")
    kinds = tuple(_leaves(hint))
    if not kinds or not all(k in RETURNED for k in kinds):
        raise TypeError(
            f"Tool {name} must return ImageView, str, Box, Mask, Point, BoxFound, MaskFound, "
            f"PointFound, or a tuple or list of those; its annotation is {hint}."
        )
    if {Box, Mask, Point} & set(kinds) and _only_image(parameters) is None:
        raise TypeError(
            f"Tool {name} returns a Box, Mask or Point but has not exactly one image; "
            "return BoxFound, MaskFound or PointFound."
        )


def _leaves(hint: Any) -> list[Any]:
    """The types inside unions, tuples and lists."""
    if get_origin(hint) in (Union, types.UnionType, tuple, list):
        return [leaf for a in get_args(hint) if a is not Ellipsis for leaf in _leaves(a)]
    return [hint]
