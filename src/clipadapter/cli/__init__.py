"""The command line: a command is a module of this package with an object called ``command``."""
