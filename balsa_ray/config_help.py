"""What a configuration's class says about itself: its keys, and the text of `--help`."""

import inspect
import json
import textwrap
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

_WIDTH = 100
_PLAIN = {str: "text", int: "integer", float: "number", bool: "true or false", Path: "path", type(None): "null"}


def keys(cls: type[BaseModel], prefix: str = "") -> dict[str, FieldInfo]:
    """Every key of a configuration in dotted form; `stages[].steps` is a key of each item of a list."""
    found: dict[str, FieldInfo] = {}
    for name, field in cls.model_fields.items():
        found[prefix + name] = field
        for suffix, nested in _nested(field.annotation):
            found |= keys(nested, f"{prefix}{name}{suffix}.")
    return found


def children(cls: type[BaseModel], path: Sequence[int | str]) -> list[str]:
    """Names of the keys below `path`, a location such as `("stages", 0)`."""
    classes = [cls]
    for part in path:
        # Positions in a list, keys of a mapping and members of a union stand in the location but name no field.
        fields = [known.model_fields[str(part)] for known in classes if str(part) in known.model_fields]
        if fields:
            classes = [nested for field in fields for _, nested in _nested(field.annotation)]
    return [name for known in classes for name in known.model_fields]


def is_mapping(cls: type[BaseModel], key: str) -> bool:
    """Whether a key's value is a mapping whose names the user chooses."""
    field = keys(cls).get(key)
    return field is not None and get_origin(field.annotation) is dict


def help_text(cls: type[BaseModel], program: str) -> str:
    """Usage, what the job does, and each key with type, default and description."""
    lines = [f"usage: python {program} CONFIG.yaml [key=value ...]", "", inspect.getdoc(cls) or "", "", "keys:"]
    for name, field in keys(cls).items():
        nested = bool(_nested(field.annotation))
        lines.append(f"  {name}  ({_type(field.annotation)}; {_default(field, nested)})")
        description = textwrap.fill(field.description or "", _WIDTH)
        lines += [textwrap.indent(description, "      ")] if description else []
    lines += ["", "key=value overrides a key of the file, a.b=value one inside it, a.0.b=value one in a list."]
    return "\n".join(lines)


def _nested(annotation: Any) -> list[tuple[str, type[BaseModel]]]:
    """Models inside an annotation, with what stands between the key and theirs: nothing, `[]` or `.<name>`."""
    return list(_walk(annotation, ""))


def _walk(annotation: Any, suffix: str) -> Iterator[tuple[str, type[BaseModel]]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield suffix, annotation
        return
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (list, tuple):
        suffix += "[]"
    elif origin is dict:
        suffix, arguments = f"{suffix}.<name>", arguments[1:]
    for argument in arguments:
        yield from _walk(argument, suffix)


def _type(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(arguments[0])
    if origin is Literal:
        return " or ".join(map(str, arguments))
    if origin in (Union, types.UnionType):
        return " or ".join(map(_type, arguments))
    if origin in (list, tuple):
        return f"list of {_type(arguments[0])}"
    if origin is dict:
        return f"mapping of {_type(arguments[0])} to {_type(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "keys below"
    return _PLAIN.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _default(field: FieldInfo, nested: bool) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "optional"
    if nested and value:
        return f"default: {len(value)} entries"
    return f"default: {json.dumps(value, default=str)}"
