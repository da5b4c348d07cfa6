# SPDX-License-Identifier: Apache-2.0
"""What every verb of the command line shares: common flags, settings from a file, one-line errors, exit codes."""

from __future__ import annotations

import difflib
import functools
import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from scrd_fast.console import Console
from scrd_fast.errors import ScrdFastError

__all__ = ["run", "verb"]


def _load(context: typer.Context, value: Path | None) -> Path | None:
    """Settings of the file become the defaults of the verb's flags and arguments."""
    if value is None:
        return None
    import yaml

    try:
        settings = yaml.safe_load(value.read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ScrdFastError(f"--config {value}: {' '.join(str(error).split())}") from None
    if not isinstance(settings, dict):
        raise ScrdFastError(f"--config {value}: expected 'name: value' lines, got {type(settings).__name__}")
    known = {p.name for p in context.command.params if p.name and p.name not in COMMON}
    for name in settings:
        if name not in known:
            near = difflib.get_close_matches(str(name), sorted(known), n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; known are {', '.join(sorted(known))}"
            raise ScrdFastError(f"--config {value}: no setting named {name!r}{hint}")
    own = {p.name: p for p in context.command.params}
    plain = {name: _as_typed(value, own[name].nargs) for name, value in settings.items()}
    context.default_map = {**(context.default_map or {}), **plain}
    return value


Config = Annotated[
    Path | None,
    typer.Option("--config", help="Settings from a YAML file; flags override it.", is_eager=True, callback=_load),
]
PrintConfig = Annotated[bool, typer.Option("--print-config", help="Print the settings as YAML and stop.")]
INTERRUPTED = 130  # exit code
GO_ON = "interrupted; the same command goes on from what was saved"

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Print the result, warnings and errors only.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Print more on stderr.")]
LogJson = Annotated[bool, typer.Option("--log-json", help="Print the log as JSON, an object a line.")]
COMMON: dict[str, tuple[Any, Any]] = {
    "config": (Config, None),
    "print_config": (PrintConfig, False),
    "json": (Json, False),
    "quiet": (Quiet, False),
    "verbose": (Verbose, False),
    "log_json": (LogJson, False),
}


def verb(function: Callable[..., None]) -> Callable[..., None]:
    """Give a verb the common flags. The function gets a `Console` first, then its own arguments."""
    own = inspect.signature(function, eval_str=True)
    parameters = list(own.parameters.values())[1:]
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        for name, (kind, default) in COMMON.items()
    ]

    @functools.wraps(function)
    def command(**arguments: Any) -> None:
        common = {name: arguments.pop(name) for name in COMMON}
        if common["print_config"]:
            _print(arguments)
            return
        flags = {name: common[name] for name in ("quiet", "verbose", "json", "log_json")}
        function(Console(**flags), **arguments)

    keyword = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
    command.__signature__ = inspect.Signature([*keyword, *added])  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in [*parameters, *added]}
    del command.__wrapped__  # type: ignore[attr-defined]
    return command


def _as_typed(value: Any, nargs: int) -> Any:
    """A YAML value as a flag would have it: YAML reads on and off as booleans, and one input needs no list."""
    if isinstance(value, bool):
        value = "on" if value else "off"
    return [value] if nargs == -1 and not isinstance(value, list) else value


def _print(arguments: dict[str, Any]) -> None:
    import yaml

    def plain(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [plain(v) for v in value]
        return str(value) if isinstance(value, Path) else value

    settings = {name: plain(value) for name, value in arguments.items() if value is not None}
    sys.stdout.write(yaml.safe_dump(settings, sort_keys=False))


def run(app: typer.Typer, arguments: list[str]) -> int:
    """Run a command; every error that its user can mend is one line on stderr. Returns the exit code."""
    debug = "--debug" in arguments
    console = Console(log_json="--log-json" in arguments)
    arguments = [a for a in arguments if a != "--debug"]
    try:
        result = typer.main.get_command(app).main(args=arguments, prog_name="scrd-fast", standalone_mode=False)
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            traceback.print_exc()
        text, code = _explain(error)
        console.error(text)
        return code
    if result == INTERRUPTED:  # Typer's answer to Ctrl-C
        console.error(GO_ON)
    return result if isinstance(result, int) else 0


def _explain(error: BaseException) -> tuple[str, int]:
    if isinstance(error, ScrdFastError):
        return str(error), error.exit_code
    if isinstance(error, KeyboardInterrupt) or type(error).__name__ == "Abort":
        return GO_ON, INTERRUPTED
    if hasattr(error, "format_message"):  # a usage error: unknown flag, missing argument, bad value
        return " ".join(str(error.format_message()).split()), 2
    if isinstance(error, (OSError, ValueError)):
        return " ".join(str(error).split()), 2
    return f"{type(error).__name__}: {error} (unexpected; --debug shows where)", 4
