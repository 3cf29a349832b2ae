"""The command line: a module for each group of commands, which `shortcut.__main__` imports when asked for."""
