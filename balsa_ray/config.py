"""Typed configuration of the jobs: a YAML file, `key=value` overrides, and one clear line for every mistake.

A job's configuration is a frozen pydantic model. OmegaConf reads the file and the overrides (and resolves
`${other.key}`), pydantic checks the result in its strict JSON mode: `"3"` is no integer and `true` is no number,
but a list is taken for a tuple and a string for a path. Nothing heavier is imported here, so that `--help` and a
refusal take a fraction of a second.
"""

import json
import signal
import sys
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from balsa_ray.config_help import children, help_text, is_mapping, keys


class Config(BaseModel):
    """Base of every configuration: unknown keys are refused and values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _least_first(count: int | tuple[int, int]) -> int | tuple[int, int]:
    if isinstance(count, tuple) and count[0] > count[1]:
        raise ValueError("the least stands first")
    return count


_Positive = Annotated[int, Field(ge=1)]
Count = Annotated[_Positive | tuple[_Positive, _Positive], AfterValidator(_least_first)]
"""A number, or the least and the most, between which Ray chooses."""


def count_range(count: int | tuple[int, int]) -> tuple[int, int]:
    """Returns the least and the most of a `Count`."""
    return (count, count) if isinstance(count, int) else count


C = TypeVar("C", bound=Config)


class UserError(ValueError):
    """A mistake the user can put right: reported as one line, without a traceback.

    Attributes:
        exit_code: 2 if nothing was started (the default), 1 if the run began and can't go on.
    """

    def __init__(self, message: str, exit_code: int = 2) -> None:
        """Keep the line to print and the exit code of the job."""
        super().__init__(message)
        self.exit_code = exit_code


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived. Whatever leaves resumable state on Ctrl-C does so on this too."""


def main(cls: type[C], run: Callable[[C], object]) -> None:
    """Body of every job: read the configuration from the command line and run.

    Exit codes: 0 done, 1 the run can't go on, 2 the user's mistake, 130 Ctrl-C, 143 SIGTERM.
    """
    config = load(cls)
    signal.signal(signal.SIGTERM, _terminate)
    try:
        run(config)
    except UserError as error:
        _refuse(error)
    except Terminated:
        raise SystemExit(143) from None
    except KeyboardInterrupt:
        print("interrupted: what is written stays, and the same command goes on", file=sys.stderr)
        raise SystemExit(130) from None


def _terminate(_signal: int, _frame: object) -> NoReturn:
    raise Terminated


def load(cls: type[C], argv: list[str] | None = None) -> C:
    """Read `CONFIG.yaml [key=value ...]` into a configuration.

    Args:
        cls: the configuration's class; its docstring and its fields' descriptions are the text of `--help`.
        argv: the arguments, `sys.argv[1:]` if None.

    Raises:
        SystemExit: 0 after `--help`; 2 after one line on stderr that names the file, the key and what is right.
    """
    arguments = sys.argv[1:] if argv is None else argv
    if "-h" in arguments or "--help" in arguments:
        print(help_text(cls, Path(sys.argv[0]).name))
        raise SystemExit(0)
    try:
        return _read(cls, arguments)
    except UserError as error:
        _refuse(error)


def _refuse(error: UserError) -> NoReturn:
    print(f"error: {error}", file=sys.stderr)
    raise SystemExit(error.exit_code) from error


def _read(cls: type[C], arguments: list[str]) -> C:
    if not arguments or "=" in arguments[0]:
        raise UserError(f"no configuration file: usage: {Path(sys.argv[0]).name} CONFIG.yaml [key=value ...]")
    file, *overrides = arguments
    data, overridden = _merge(cls, file, overrides)
    try:
        return cls.model_validate_json(json.dumps(data), strict=True)
    except ValidationError as invalid:
        raise UserError(_describe(cls, file, data, overridden, invalid)) from invalid


def _merge(cls: type[BaseModel], file: str, overrides: list[str]) -> tuple[dict[str, Any], list[str]]:
    """The merged mapping, and the dotted keys that came from the command line."""
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        merged = OmegaConf.load(file)
    except OSError as error:
        raise UserError(f"{file}: {(error.strerror or str(error)).lower()}") from error
    except (YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        raise UserError(f"{file}: not valid YAML: {_one_line(error)}") from error
    if not isinstance(merged, DictConfig):
        raise UserError(f"{file}: has to be a mapping of keys to values")
    dotted = []
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals or not key:
            raise UserError(f"command line: {override!r}: an override has the form key=value")
        dotted.append(key)
        try:
            # A mapping with names of its own (shares of kinds, say) is meant as a whole; one with known keys in part.
            value, before = _value(override[len(key) + 1 :]), OmegaConf.select(merged, key)
            mappings = isinstance(value, DictConfig) and isinstance(before, DictConfig)
            OmegaConf.update(merged, key, value, merge=mappings and not is_mapping(cls, key))
        except (YAMLError, OmegaConfBaseException, ValueError, TypeError, IndexError) as error:
            raise UserError(f"command line: {key}: {_one_line(error)}") from error
    try:
        data = OmegaConf.to_container(merged, resolve=True)
        json.dumps(data)
    except (OmegaConfBaseException, TypeError, ValueError) as error:
        raise UserError(f"{file}: {_one_line(error)}") from error
    assert isinstance(data, dict)
    return {str(key): value for key, value in data.items()}, dotted


def _value(text: str) -> Any:
    """The value of an override: YAML, or the text itself where it is none, as a pattern `{name}.flac`."""
    from omegaconf import OmegaConf
    from yaml import YAMLError

    try:
        return OmegaConf.select(OmegaConf.from_dotlist([f"value={text}"]), "value")
    except YAMLError:
        return text


def _one_line(error: Exception) -> str:
    """A library's message as one line, without the coordinates OmegaConf appends."""
    lines = (line.strip() for line in str(error).splitlines())
    return "; ".join(line for line in lines if line and not line.startswith(("full_key:", "object_type=")))


def _describe(
    cls: type[BaseModel], file: str, data: dict[str, Any], overridden: list[str], invalid: ValidationError
) -> str:
    """The most telling of the mistakes; a misspelt key comes before the required one that it leaves missing."""
    reasons: dict[str, list[str]] = {}
    for mistake in sorted(invalid.errors(), key=lambda mistake: mistake["type"] != "extra_forbidden"):
        path = _path(mistake, data)
        reasons.setdefault(".".join(map(str, path)), []).append(_reason(cls, path, mistake))
    key, alternatives = next(iter(reasons.items()))
    source = "command line" if any(_covers(name, key) for name in overridden) else file
    more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
    return f"{source}: {key + ': ' if key else ''}{', or '.join(alternatives)}{more}"


def _path(mistake: ErrorDetails, data: Any) -> list[int | str]:
    """The mistake's location as the user wrote it: pydantic's also names the members of a union that were tried."""
    path: list[int | str] = []
    for part in mistake["loc"]:
        if isinstance(part, int) or (isinstance(data, dict) and part in data):
            data = data[part]
            path.append(part)
    return [*path, mistake["loc"][-1]] if mistake["type"] == "missing" else path


def _covers(override: str, key: str) -> bool:
    """Whether the override set this key, something inside it or the mapping that holds it."""
    a, b = override.split("."), key.split(".")
    shorter = min(len(a), len(b))
    return a[:shorter] == b[:shorter]


def _reason(cls: type[BaseModel], path: list[int | str], mistake: ErrorDetails) -> str:
    given = json.dumps(mistake["input"], default=str)
    match mistake["type"]:
        case "extra_forbidden":
            return _unknown(cls, path)
        case "missing":
            return "missing; this key is required"
        case "model_type":
            return f"should be a mapping with keys of {', '.join(children(cls, path))}, not {given}"
    message = mistake["msg"].removeprefix("Value error, ").removeprefix("Input ").replace("valid array", "valid list")
    return message if isinstance(mistake["input"], dict) else f"{message}, not {given}"


def _unknown(cls: type[BaseModel], path: list[int | str]) -> str:
    """A key of the same name elsewhere is a better guess than a similar name here."""
    name = str(path[-1])
    here = {"".join(f"{part}." for part in path[:-1]) + sibling: sibling for sibling in children(cls, path[:-1])}
    anywhere = {key: key.rpartition(".")[2] for key in keys(cls)}
    same = [key for key, last in anywhere.items() if last == name]
    similar = [key for key, last in here.items() if last in get_close_matches(name, here.values(), n=1)]
    distant = [key for key, last in anywhere.items() if last in get_close_matches(name, anywhere.values(), 1, 0.8)]
    guesses = same + similar + distant
    hint = f"did you mean '{guesses[0]}'?" if guesses else f"known: {', '.join(here.values())}"
    return f"unknown key; {hint}"
