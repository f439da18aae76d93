"""``tvmflow board``: thin over ``tvmflow.board``."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tvmflow.cli.verb import Output, help_without_verb, verb
from tvmflow.errors import EnvironmentProblem, UsageError

if TYPE_CHECKING:
    from tvmflow.board.registry import Board

app = typer.Typer(help="Register, check and serve boards.", invoke_without_command=True)
Name = Annotated[str, typer.Argument(metavar="NAME", help="The board's name.")]
PORT = 9300


@app.callback()
def _default(context: typer.Context) -> None:
    help_without_verb(context)


def _add(
    name: Name,
    address: Annotated[
        str, typer.Argument(metavar="HOST[:PORT]", help="Where its server listens; with --ssh, as seen from there.")
    ] = "127.0.0.1",
    target: Annotated[str, typer.Option("--target", "-t", metavar="TARGET", help="What its artifacts are compiled for.")] = "",
    ssh: Annotated[str, typer.Option("--ssh", metavar="USER@HOST", help="Reach the server through an SSH tunnel.")] = "",
    key: Annotated[str, typer.Option("--key", help="The word that its server was started with.")] = "",
    threads: Annotated[int, typer.Option("--threads", min=0, help="Threads of a run that asks for none; 0: one a core.")] = 0,
) -> Output:
    """Register a board, in place of one of the same name."""
    from tvmflow.board.registry import Board, add_board, registry_path
    from tvmflow.target import get_target

    if target:
        get_target(target)
    host, port = _address(address)
    board = Board(name=name, host=host, port=port, target=target, ssh=ssh, key=key, threads=threads)
    add_board(board)
    return Output(_brief(board), (f"{name} is registered in {registry_path()}; try it with `tvmflow board check {name}`",))


def _list() -> Output:
    """List the registered boards."""
    from tvmflow.board.registry import read_boards, registry_path
    from tvmflow.cli.tables import board_table

    boards = [_brief(board) for board in read_boards().values()]
    path = str(registry_path())
    return Output({"boards": boards, "file": path}, board_table(boards) if boards else (f"no boards in {path}",))


def _check(
    name: Annotated[str, typer.Argument(metavar="NAME|HOST:PORT|local", help="The board to look at; local: this machine.")],
    timeout: Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds to wait for an answer.")] = 10.0,
) -> Output:
    """Look at a board: reachable, versions, CPU features, memory, heat."""
    from tvmflow.board.health import check
    from tvmflow.cli.tables import checks_output

    return checks_output(check(name, timeout))


def _remove(name: Name) -> Output:
    """Forget a board."""
    from tvmflow.board.registry import remove_board

    return Output(_brief(remove_board(name)), (f"{name} is forgotten",))


def _serve(
    host: Annotated[str, typer.Option("--host", help="Address to bind. Whoever can reach it can run code here.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes a free one.")] = PORT,
    key: Annotated[str, typer.Option("--key", help="Answer only to clients with this key.")] = "",
    session_limit: Annotated[float, typer.Option("--session-limit", min=1, help="Longest session, in seconds.")] = 3600.0,
    tracker: Annotated[
        str, typer.Option("--tracker", metavar="HOST:PORT", help="Announce it under its key at this RPC tracker of TVM.")
    ] = "",
) -> Output:
    """Serve this machine as a board, until interrupted. Prints `listening on HOST:PORT`."""
    from tvmflow.board.server import ServerConfig, serve
    from tvmflow.board.tracker import split

    if tracker and not key:
        raise UsageError("a tracker hands boards out by their key", where="--tracker", remedy="give --key too, such as rpi4")
    if tracker:
        split(tracker)
    with contextlib.suppress(SystemExit):  # how the server ends on a signal
        try:
            serve(ServerConfig(host=host, port=port, key=key, session_limit=session_limit, tracker=tracker))
        except OSError as error:
            raise EnvironmentProblem(
                f"can't listen: {error.strerror}", where=f"{host}:{port}", remedy="--port 0 takes a free one"
            ) from error
    return Output({"host": host, "port": port}, ("the server has ended",))


def _address(text: str) -> tuple[str, int]:
    """``host``, ``host:port`` or ``[host]:port``."""
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        return text.strip("[]"), PORT
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise UsageError(f"{port!r} is no port", where=text, remedy="write HOST or HOST:PORT, with a port of 1 to 65535")
    return host.strip("[]"), int(port)


def _brief(board: Board) -> dict[str, Any]:
    """All that is registered of a board but its key."""
    return {field: getattr(board, field) for field in board.__struct_fields__ if field != "key"}


app.command("add")(verb(_add))
app.command("list")(verb(_list))
app.command("check")(verb(_check))
app.command("remove")(verb(_remove))
app.command("serve")(verb(_serve))
