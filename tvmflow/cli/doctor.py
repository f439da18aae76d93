"""``tvmflow doctor``."""

from __future__ import annotations

from tvmflow.cli.verb import Output


def command() -> Output:
    """Check that this machine has what tvmflow needs.

    Says what to do where it hasn't; the exit code is 3 when a check fails.
    """
    from tvmflow import doctor
    from tvmflow.cli.tables import checks_output

    return checks_output(doctor.checks())
