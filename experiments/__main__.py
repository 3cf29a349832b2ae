"""Remake the shipped models and measure them: python -m experiments COMMAND"""

from __future__ import annotations

import argparse
import logging
import sys

from experiments import gallery
from experiments.robustness import fuzz, previews, soak
from experiments.tables import (
    frontier,
    load_memory,
    real_sizes,
    weight_layers,
    weight_types,
)
from experiments.training import stages
from shortcut.train.cpu import keep_memory

COMMANDS = (
    *(stages, frontier, weight_types, weight_layers, real_sizes, load_memory),
    *(gallery, fuzz, previews, soak),
)


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m experiments", description=__doc__)
    steps = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(steps)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    keep_memory()
    options = parser.parse_args(arguments)
    try:
        return options.run(options)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
