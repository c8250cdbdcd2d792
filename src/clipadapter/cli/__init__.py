"""The command line. A command is a module of `clipadapter.cli.commands`."""
