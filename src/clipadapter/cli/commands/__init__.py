"""One module or package per command; each has an object called ``command``."""
