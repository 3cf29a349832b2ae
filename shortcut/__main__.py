"""The command line. `python -m shortcut COMMAND --help` lists the options of a command."""

from __future__ import annotations

import argparse
import io
import logging
import sys
from importlib import import_module

from .guard import message_of

# Command -> (module of `cli` that adds it, what it does). Only the module that is asked for is imported.
COMMANDS = {
    "generate": ("generate", "make pictures"),
    "info": ("files", "say what a file is"),
    "convert": ("files", "write a checkpoint as one of our files"),
    "download": ("download", "fetch published files from huggingface.co"),
    "cost": ("cost", "FLOPs and memory of the published models, counted without their weights"),
    "train": ("train", "train a shortcut head"),
    "evaluate": ("evaluate", "say how good a shortcut head is"),
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Return the exit status: 0 done, 1 an error that is said on stderr, 2 wrong usage."""
    arguments = sys.argv[1:] if arguments is None else arguments
    show_every_name()
    parser = argparse.ArgumentParser(prog="python -m shortcut", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    if arguments and arguments[0] in COMMANDS:
        module, _ = COMMANDS[arguments[0]]
        import_module(f".cli.{module}", __package__).add_parser(commands)
    else:
        for name, (_, about) in COMMANDS.items():
            commands.add_parser(name, help=about)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        return options.run(options)
    except KeyboardInterrupt:
        print("interrupted: what was not finished was not written", file=sys.stderr)
        return 130
    except (ValueError, OSError, FloatingPointError, RuntimeError) as error:
        print(f"error: {message_of(error)}", file=sys.stderr)
        return 1


def show_every_name() -> None:
    """Let no output fail because a console or a pipe cannot hold a character: a stand-in is shown."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


if __name__ == "__main__":
    sys.exit(main())
