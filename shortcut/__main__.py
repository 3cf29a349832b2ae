"""The command line: python -m shortcut generate | convert | info | download | cost | record | train | evaluate."""

from __future__ import annotations

import argparse
import logging
import sys

from .cli import (
    cost,
    download,
    generate,
)
from .cli import evaluate as cli_evaluate
from .cli import (
    files as convert,
)
from .cli import record as cli_record
from .cli import train as cli_train


def main(arguments: list[str] | None = None) -> int:
    """Runs one command. Returns the exit status: 0 done, 1 an error that is said on stderr, 2 wrong usage."""
    parser = argparse.ArgumentParser(prog="python -m shortcut", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    generate.add_parser(commands)
    convert.add_parsers(commands)
    download.add_parser(commands)
    cost.add_parser(commands)
    cli_record.add_parser(commands)
    cli_train.add_parser(commands)
    cli_evaluate.add_parser(commands)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    options = parser.parse_args(arguments)
    try:
        return options.run(options)
    except KeyboardInterrupt:
        print("interrupted: what was not finished was not written", file=sys.stderr)
        return 130
    except (ValueError, OSError, FloatingPointError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
