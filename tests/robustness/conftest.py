"""Scripts that import one another run as programs only: pytest would import them as modules to look for examples."""

collect_ignore = ["link_trees.py", "own_folders.py"]
