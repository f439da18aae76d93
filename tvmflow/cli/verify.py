"""``tvmflow verify``."""

from __future__ import annotations

from tvmflow.cli.options import Artifact, BoardName, existing
from tvmflow.cli.verb import Output


def command(artifact: Artifact, board: BoardName = None) -> Output:
    """Replay the self-test that an artifact carries.

    The outputs are compared bit for bit; the exit code is 1 when they differ.
    """
    import msgspec

    from tvmflow import flow

    data = msgspec.to_builtins(flow.verify(existing(artifact), board=board))
    verdict = "passed" if data["passed"] else "FAILED"
    exact = "bit-exact" if data["bit_exact"] else f"largest error {data['max_abs_error']:.3g}"
    return Output(data, (f"{verdict}: {data['vectors']} vectors, {exact}",), exit_code=0 if data["passed"] else 1)
