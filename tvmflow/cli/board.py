"""``tvmflow board``."""

from __future__ import annotations

import typer

from tvmflow.cli.verb import help_without_verb

app = typer.Typer(help="Register, check and serve boards.", invoke_without_command=True)


@app.callback()
def _default(context: typer.Context) -> None:
    help_without_verb(context)
