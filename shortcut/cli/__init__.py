"""The command line: a module for each command or group of commands, which `shortcut.__main__` imports on demand."""
