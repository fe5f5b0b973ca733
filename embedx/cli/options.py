"""The options of commands: those made from a configuration's fields, those read from a TOML file, those shared."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import tomllib
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer

from embedx.cli.completion import completer
from embedx.cli.output import STDERR
from embedx.errors import ConfigError, unknown
from embedx.paths import local_path, store_path
from embedx.values import ProgressForm, size_text


def plainly(parse: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Makes a parser of a parameter refuse a value in its own words alone, without the type of its error."""

    @functools.wraps(parse)
    def parser(value: Any) -> Any:
        try:
            return parse(value)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error

    return parser


def with_config_options(config: type[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command one option per field of a configuration, which the command receives as its `config`.

    The command's other parameters follow those options.

    Args:
        config: A dataclass with fields that `embedx.settings` declares.
    """
    return functools.partial(_with_options, config)


def _with_options(config: type[Any], command: Callable[..., None]) -> Callable[..., None]:
    settings_of = {field.name: field for field in dataclasses.fields(config)}
    hints = typing.get_type_hints(config)
    own = inspect.signature(command, eval_str=True)
    fields = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            annotation=Annotated[_option_type(hints[name], field), _option(hints[name], field)],
            default=_default(field),
        )
        for name, field in settings_of.items()
    ]
    fields += [_positional(field) for field in settings_of.values() if "positional" in field.metadata]
    others = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for parameter in own.parameters.values()
        if parameter.name != "config"
    ]

    def wrapper(context: typer.Context, **values: Any) -> None:
        for name in settings_of:
            if given := values.pop(f"more_{name}", None):
                source = context.get_parameter_source(name)
                flags = values[name] if source is not None and source.name == "COMMANDLINE" else []
                values[name] = [*flags, *given]
        settings = {name: values.pop(name) for name in settings_of}
        settings = {name: tuple(v) if isinstance(v, list) else v for name, v in settings.items()}
        command(config=config(**settings), **values)

    context = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    parameters = [context, *fields, *others]
    wrapper.__doc__ = command.__doc__
    wrapper.__name__ = command.__name__
    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return wrapper


_LARGEST_CONFIG = 16 * 1024**2
"""The bytes above which a file is not read as settings; parsing that many takes seconds."""


def load_config_file(context: typer.Context, path: Path | None) -> Path | None:
    """Makes a TOML file's values the defaults of the options, so that flags win; the callback of `--config`.

    Raises:
        ConfigError: If the file can't be read, or has unknown keys or values that their options don't take; all are
            named.
    """
    if path is None:
        return None
    try:
        with path.open("rb") as file:
            text = file.read(_LARGEST_CONFIG + 1).decode()
        if len(text) > _LARGEST_CONFIG:
            most = size_text(_LARGEST_CONFIG)
            raise ConfigError(f"--config {path}: has more than {most}, too much for settings; name another file")
        settings = tomllib.loads(text)
    except RecursionError as error:
        raise ConfigError(f"--config {path}: can't be read (its values are nested too deeply)") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"--config {path}: can't be read ({error})") from error
    options = _options_by_key(context.command)
    ConfigError.check([f"--config {path}: {unknown('key', key, options)}" for key in settings if key not in options])
    values, faults = {}, []
    for key, value in settings.items():
        option = options[key]
        values[option.name] = [value] if option.multiple and not isinstance(value, list) else value
        try:
            option.process_value(context, values[option.name])
        except typer.BadParameter as error:
            faults.append(f"--config {path}: {key}: {error.message.removeprefix('Value error, ')}")
    ConfigError.check(faults)
    context.default_map = {**(context.default_map or {}), **values}
    return path


def _show_tracebacks(wanted: bool) -> bool:
    STDERR.show_tracebacks = wanted
    return wanted


def _silence(wanted: bool) -> bool:
    STDERR.quiet = wanted
    return wanted


def _print_as_json(form: ProgressForm) -> ProgressForm:
    STDERR.as_json = form == "json"
    return form


StoreArgument = Annotated[
    Any,  # a StorePath, but typer knows no unions
    typer.Argument(metavar="STORE", help="Folder or URL that `embedx extract` wrote.", parser=plainly(store_path)),
]
ConfigFileOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        parser=plainly(local_path),
        metavar="PATH",
        help="TOML file with any of these options, without their dashes; flags win.",
        callback=load_config_file,
        is_eager=True,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
QuietOption = Annotated[bool, typer.Option("--quiet", help="Print nothing on stderr but errors.", callback=_silence)]
ProgressOption = Annotated[
    ProgressForm,
    typer.Option(
        "--progress",
        metavar="auto|plain|json",
        help="Form of stderr. auto: a bar on a terminal, and elsewhere plain lines now and then. json: a JSON object a "
        "line, each second, for programs that watch.",
        callback=_print_as_json,
    ),
]
VerboseOption = Annotated[
    bool,
    typer.Option(
        "--verbose", "-v", help="Also print versions, what was decided, and each rejected input as it is found."
    ),
]
DebugOption = Annotated[
    bool, typer.Option("--debug", help="Show an error's traceback.", callback=_show_tracebacks, is_eager=True)
]


def _options_by_key(command: Any) -> dict[str, Any]:
    """Returns the options that a TOML file can set, by the flag's name: `batch-size` and also `batch_size`."""
    keys: dict[str, Any] = {}
    for option in command.params:
        if option.name not in ("config_file", "help"):
            for flag in option.opts:
                if flag.startswith("--"):
                    keys[flag[2:]] = keys[flag[2:].replace("-", "_")] = option
    return keys


def _option_type(hint: Any, field: dataclasses.Field[Any]) -> Any:
    """Returns the type that typer needs for a field: a list for a tuple, and none where the field has a parser."""
    if "parser" in field.metadata:
        return Any
    if "path" in field.metadata:  # as text, because pathlib makes one slash of a URL's two
        return str if field.default is dataclasses.MISSING else str | None
    return list[str] if get_origin(hint) is tuple else hint


def _option(hint: Any, field: dataclasses.Field[Any]) -> Any:
    metadata = field.metadata
    flag = metadata.get("flag") or "--" + field.name.replace("_", "-")
    flags = [flag, metadata["short"]] if metadata["short"] else [flag]
    parser = plainly(metadata["parser"]) if "parser" in metadata else None
    metavar = metadata.get("metavar") or _metavar(hint, field.name)
    return typer.Option(
        *flags,
        help=metadata["help"],
        show_default=metadata.get("shown", True),
        metavar=metavar,
        parser=parser,
        autocompletion=completer(metavar),
        rich_help_panel=metadata.get("panel"),
    )


def _metavar(hint: Any, name: str) -> str | None:
    """Returns what a value is called on the help page: its choices, N, or the last word of the setting's name."""
    kinds = [hint, *get_args(hint)]
    choices = next((get_args(kind) for kind in kinds if get_origin(kind) is Literal), ())
    if choices or bool in kinds:
        return "|".join(choices) or None
    return "N" if int in kinds else "NUMBER" if float in kinds else name.rpartition("_")[2].upper()


def _positional(field: dataclasses.Field[Any]) -> inspect.Parameter:
    """Returns the parameter of a setting's further values that stand without its flag; they win over a file's."""
    argument = typer.Argument(metavar=field.metadata["metavar"], help=f"The same as by --{field.name}.")
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(f"more_{field.name}", kind, annotation=Annotated[list[str] | None, argument], default=None)


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default is dataclasses.MISSING:
        return inspect.Parameter.empty
    return list(field.default) if isinstance(field.default, tuple) else field.default
