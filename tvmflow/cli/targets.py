"""``tvmflow targets``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from tvmflow.cli.verb import Debug, Json, Output, verb

if TYPE_CHECKING:
    from tvmflow.target import Target

app = typer.Typer(help="List, show and detect targets.", invoke_without_command=True)


def _list() -> Output:
    """List the named targets."""
    from tvmflow.cli.tables import target_table
    from tvmflow.target import get_target, target_files

    targets = [_brief(get_target(name)) for name in target_files()]
    return Output({"targets": targets}, target_table(targets))


def _show(name: Annotated[str, typer.Argument(metavar="NAME", help="A target's name, its alias, or a TOML file.")]) -> Output:
    """Show all that is known of a target."""
    from tvmflow.target import get_target

    return _shown(get_target(name))


def _detect() -> Output:
    """Show what `native` stands for on this machine."""
    from tvmflow.target import detect

    return _shown(detect())


def _shown(target: Target) -> Output:
    import msgspec
    import tomli_w

    data = msgspec.to_builtins(target)
    return Output(data, (tomli_w.dumps(_without_none(data)),))


def _brief(target: Target) -> dict[str, Any]:
    return {
        "name": target.name,
        "family": target.family,
        "arch": target.arch,
        "description": target.description,
        "aliases": list(target.aliases),
    }


def _without_none(value: Any) -> Any:
    """TOML has no null."""
    if isinstance(value, dict):
        return {k: _without_none(v) for k, v in value.items() if v is not None}
    return value


@app.callback()
def _default(context: typer.Context, json: Json = False, debug: Debug = False) -> None:
    if context.invoked_subcommand is None:
        verb(_list)(json=json, debug=debug)


app.command("list")(verb(_list))
app.command("show")(verb(_show))
app.command("detect")(verb(_detect))
