"""The commands of the program: one module each, or for a few short ones of the same kind."""

SECTIONS: dict[str, dict[str, str]] = {
    "Start": {
        "scan": "List classes, counts, unreadable files and duplicates.",
        "fit": "Fit a classifier to labelled pictures and save it.",
        "predict": "Predict the class of each picture.",
        "eval": "Measure a model on labelled pictures.",
        "studio": "Fit, try and correct a classifier in the browser.",
        "demo": "Show the whole workflow on pictures of fabric.",
    },
    "Update and monitor a model": {
        "add-class": "Add a class, from pictures or folders of pictures.",
        "add-examples": "Add pictures of the classes of a model.",
        "correct": "Correct the labels of pictures.",
        "rename-class": "Rename a class.",
        "remove-class": "Remove a class and its pictures.",
        "history": "List the versions of a model.",
        "undo": "Undo the last change of a model.",
        "monitor": "Detect drift in new pictures.",
    },
    "Compare and inspect": {
        "compare": "Compare heads on the same pictures.",
        "heads": "List the heads and their parameters.",
        "encoders": "List the encoders by what they are good for.",
        "doctor": "Find problems in labelled pictures.",
        "explain": "Explain the prediction for a picture.",
        "report": "Write a page about a model and its mistakes.",
    },
    "Export, serve and share": {
        "export": "Write a model as one file that runs without torch.",
        "serve": "Serve models over HTTP.",
        "push": "Upload a model to the Hugging Face hub.",
        "pull": "Download a model from the Hugging Face hub.",
    },
    "Benchmarks and others": {
        "bench": "Run the studies of the papers.",
        "data": "List and prepare the data sets of the papers.",
        "embed": "Compute and store the features of pictures.",
        "simclr": "Train an image encoder on pictures without classes.",
        "version": "Show the versions of the main packages.",
    },
}
"""The commands in the sections and the order of ``clipadapter --help``, each with a line that fits 80 columns."""

SHARED_MODULES = {
    **dict.fromkeys(
        ("add-class", "add-examples", "correct", "rename-class", "remove-class", "history", "undo"), "edit"
    ),
    **{"demo": "compare", "doctor": "scan", "explain": "eval", "report": "eval", "simclr": "embed"},
    **dict.fromkeys(("encoders", "version"), "heads"),
    **dict.fromkeys(("push", "pull"), "export"),
}
"""The modules of commands that are not the first in theirs."""
