"""The ``tvmflow`` command: every verb, in the order of the flow."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from tvmflow.cli import bench, board, compile, doctor, evaluate, inspect, quantize, run, targets, tune, verify
from tvmflow.cli.verb import INTERRUPTED, explain, help_without_verb, verb
from tvmflow.errors import UsageError

app = typer.Typer(
    name="tvmflow",
    help="A real model in, a measured .so out: quantize, tune, compile and benchmark neural networks for x86, ARM and CUDA.",
    invoke_without_command=True,
    add_completion=False,
    rich_markup_mode=None,  # drawing the help with rich doubles the time of `tvmflow --help`
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for name, function in (
    ("compile", compile.command),
    ("quantize", quantize.command),
    ("tune", tune.command),
    ("run", run.command),
    ("bench", bench.command),
    ("eval", evaluate.command),
    ("verify", verify.command),
    ("inspect", inspect.command),
):
    app.command(name)(verb(function))
app.add_typer(targets.app, name="targets")
app.add_typer(board.app, name="board")
app.command("doctor")(verb(doctor.command))


def _version(wanted: bool) -> None:
    if wanted:
        from tvmflow import __version__

        print(f"tvmflow {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    help_without_verb(context)


_MALFORMED: Any = typer.BadParameter.__base__
"""What typer raises for a malformed command line; it has no public name of its own in all versions of typer."""


def _usage(error: Any) -> int:
    context, message = error.ctx, error.format_message()
    remedy = f"see `{context.command_path} --help`" if context else ""
    return explain(UsageError(message, remedy=remedy), "--json" in sys.argv, False)


def main() -> None:
    """Runs the command line and leaves with its exit code: 0 ok, 1 user error, 2 usage, 3 device or environment, 4 our bug."""
    try:
        code = app(standalone_mode=False)
    except typer.Abort:
        code = INTERRUPTED
    except _MALFORMED as error:
        code = _usage(error)
    sys.exit(code or 0)
