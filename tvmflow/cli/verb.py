"""What every verb has in common: ``--json``, ``--debug``, progress, one result on standard output, and exit codes."""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from tvmflow.cli.screen import Screen
from tvmflow.errors import EnvironmentProblem, InternalError, TvmflowError, UsageError

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output, and nothing else there.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the Python traceback of an error.")]
INTERRUPTED = 130
_FILE_WIDTH = 140
"""Columns of a table that is not printed on a terminal."""


@dataclass(frozen=True)
class Output:
    """What a verb found.

    ``data`` is the JSON object. ``show`` is for people: strings and rich renderables, printed in order. ``exit_code`` is not 0
    where the verb did its work and the answer is no (a failed self-test, a failed check).
    """

    data: dict[str, Any]
    show: tuple[Any, ...]
    exit_code: int = 0


def verb(function: Callable[..., Output]) -> Callable[..., None]:
    """Turns ``function(...) -> Output`` into a command. A parameter ``progress`` of it is filled with the progress display."""
    signature = inspect.signature(function, eval_str=True)
    watched = "progress" in signature.parameters
    own = [p for p in signature.parameters.values() if p.name != "progress"]
    extra = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=annotation)
        for name, annotation in (("json", Json), ("debug", Debug))
    ]

    @functools.wraps(function)
    def command(**arguments: Any) -> None:
        as_json, debug = arguments.pop("json"), arguments.pop("debug")
        try:
            with Screen() as screen, _quiet_stdout(as_json):
                output = function(**arguments, **({"progress": screen.report} if watched else {}))
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from None
        except typer.Exit:
            raise
        except Exception as error:  # the process boundary: nothing above turns an exception into words and an exit code
            raise typer.Exit(explain(error, as_json, debug)) from None
        _show(output, as_json)
        if output.exit_code:
            raise typer.Exit(output.exit_code)

    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own] + extra
    command.__signature__ = signature.replace(parameters=parameters, return_annotation=None)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    del command.__wrapped__  # else inspect reads the signature of `function` through it
    return command


def help_without_verb(context: typer.Context) -> None:
    """For a group that was called without a verb: prints its help, as a usage error."""
    if context.invoked_subcommand is None:
        print(context.get_help(), file=sys.stderr)
        raise typer.Exit(UsageError.exit_code)


def explain(failure: Exception, as_json: bool, debug: bool) -> int:
    """Prints an error in words (and as an ``error`` object with ``--json``); returns the exit code."""
    if debug:
        traceback.print_exception(failure)
    error = _in_words(failure)
    print(f"error: {error}", file=sys.stderr)
    if as_json:
        kind = type(error).__name__
        fields = {"kind": kind, "what": error.what, "where": error.where, "remedy": error.remedy, "exit_code": error.exit_code}
        print(json.dumps({"error": fields}))
    return error.exit_code


def _in_words(failure: Exception) -> TvmflowError:
    if isinstance(failure, TvmflowError):
        return failure
    if isinstance(failure, OSError):  # a disk that is full, a folder that can't be written
        return EnvironmentProblem(failure.strerror or str(failure), where=str(failure.filename or ""))
    what = f"this is a bug in tvmflow: {type(failure).__name__}: {failure}"
    return InternalError(what, remedy="run it again with --debug and report what it prints")


def _show(output: Output, as_json: bool) -> None:
    if as_json:
        import msgspec

        print(msgspec.json.encode(output.data).decode())  # writes null for what JSON has no number for
        return
    from rich.console import Console

    terminal = sys.stdout.isatty()
    console = Console(highlight=False, soft_wrap=not terminal, width=None if terminal else _FILE_WIDTH)
    for item in output.show:
        console.print(item, markup=False) if isinstance(item, str) else console.print(item)


@contextlib.contextmanager
def _quiet_stdout(wanted: bool) -> Iterator[None]:
    """Sends what libraries print on standard output, native code and child processes included, to standard error."""
    if not wanted:
        yield
        return
    sys.stdout.flush()
    saved = os.dup(1)
    try:
        os.dup2(2, 1)
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)
