"""What the recipe's sections are made of: strict mappings, words of a list, files, callables."""

from __future__ import annotations

import sys
from collections import abc
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError

from granplugin.suggest import did_you_mean

Positive = Annotated[int, Field(ge=1)]


class Strict(BaseModel):
    """Frozen, no coercion, and an unknown key is an error that names the nearest known one."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        populate_by_name=True,
        arbitrary_types_allowed=True,
        allow_inf_nan=False,
        defer_build=True,
    )

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, data: Any) -> Any:
        if isinstance(data, dict):
            known = [field.alias or name for name, field in cls.model_fields.items()]
            for key in data:
                if key not in known:
                    raise unknown_key(key, known)
        return data


def at_key(key: str, message: str) -> PydanticCustomError:
    """An error at one key of the mapping that is being validated."""
    return PydanticCustomError("at_key", "{message}", {"key": key, "message": message})


def unknown_key(key: str, known: list[str]) -> PydanticCustomError:
    return at_key(key, f"unknown key {key!r}{did_you_mean(key, known)}")


@dataclass(frozen=True)
class OneOf:
    """Of a str: a word out of a list; a wrong one names the nearest."""

    what: str
    names: tuple[str, ...]
    meant: tuple[tuple[str, str], ...] = ()
    """Words that others use, each with the one that is meant."""

    def __get_pydantic_core_schema__(
        self, source: type[str], handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        schema = WithJsonSchema({"enum": list(self.names)})
        return handler.generate_schema(Annotated[source, BeforeValidator(self._check), schema])

    def _check(self, value: Any) -> Any:
        if value not in self.names:
            known = dict(self.meant).get(value if isinstance(value, str) else "")
            hint = f"; did you mean {known!r}?" if known else did_you_mean(str(value), self.names)
            raise ValueError(f"unknown {self.what} {value!r}{hint}")
        return value


def _path(value: Any) -> Path:
    if not isinstance(value, (str, Path)) or not str(value):
        raise ValueError(f"a file name is expected, not {value!r}")
    return Path(value)


File = Annotated[
    Path,
    BeforeValidator(_path),
    WithJsonSchema(
        {
            "type": "string",
            "format": "path",
            "description": "A path; relative ones start at the recipe.",
        }
    ),
]


def is_pythons_own(module: str) -> bool:
    """Whether a module is of the standard library: os, subprocess, pickle ... have no models, and
    a recipe that names a callable of theirs means to do something else.

    >>> is_pythons_own("os.path"), is_pythons_own("torchvision.models")
    (True, False)
    """
    return module.partition(".")[0].lstrip("_") in _OWN


_OWN = frozenset(name.lstrip("_") for name in (*sys.stdlib_module_names, *sys.builtin_module_names))


class Target(Strict):
    """A callable: `file.py:name` beside the recipe, or `installed.module:name`."""

    path: Path | None = None
    module: str | None = None
    name: str

    def __str__(self) -> str:
        return f"{self.path.name if self.path else self.module}:{self.name}"


def target_of(value: Any) -> Target:
    """`file.py:name` or `module:name`; ValueError, in one sentence, for others."""
    if isinstance(value, Target):
        return value
    place, _, name = str(value).rpartition(":")
    if not isinstance(value, str) or not place or not name.isidentifier():
        raise ValueError(f"a callable is written file.py:name or module:name, not {value!r}")
    if place.endswith(".py"):
        return Target(path=Path(place), name=name)
    if not all(part.isidentifier() for part in place.split(".")):
        raise ValueError(f"{place!r} is neither a file ending in .py nor a module's name")
    if is_pythons_own(place):
        raise ValueError(f"{value!r} is Python's own; a callable is of your code or of a package's")
    return Target(module=place, name=name)


Callable = Annotated[
    Target,
    BeforeValidator(target_of),
    WithJsonSchema(
        {
            "type": "string",
            "format": "callable",
            "description": "file.py:name or installed.module:name",
        }
    ),
]


def words(value: Any) -> Any:
    """A word alone as a list. A number is one that lacks its quotes, such as a layer's name 0.0."""
    return [value] if isinstance(value, (str, int, float)) else value


@dataclass(frozen=True)
class OrAlone:
    """Of a list or tuple: it may be one item alone, which `listed` makes a list."""

    listed: abc.Callable[[Any], Any] = words
    least: int = 1

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        item = get_args(source)[0]
        # In a recipe's text a tuple is written as a list.
        written = list[item]  # type: ignore[valid-type]
        before = BeforeValidator(self.listed, json_schema_input_type=written | item)
        made = AfterValidator(tuple if get_origin(source) is tuple else list)
        least = Field(min_length=self.least)
        return handler.generate_schema(Annotated[written, least, before, made])


def paths_of(section: type[Strict]) -> tuple[str, ...]:
    """The keys of a section that name a file, a folder, or a callable, which a file may hold."""
    fields = section.model_fields.items()
    return tuple(name for name, field in fields if _is_path(field.annotation))


def _is_path(annotation: Any) -> bool:
    return annotation in (Path, Target) or any(map(_is_path, get_args(annotation)))
