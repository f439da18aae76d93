"""``python -m tvmflow``."""

from tvmflow.cli.app import main

main()
