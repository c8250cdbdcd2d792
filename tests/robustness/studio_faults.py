"""Makes random steps in a studio's project, killed or failed before operations on files.

Usage: studio_faults.py FOLDER SEED. Faults come before every second operation, with the next seed before the others. It
writes how many faults there were; what is wrong ends it with an AssertionError.
"""

import json
import os
import random
import shutil
import sys
from contextlib import suppress
from itertools import product
from pathlib import Path

from clipadapter.errors import InputError
from clipadapter.studio import Project
from clipadapter.studio.pictures import Upload

NAMES = ("cat", "a/b", "test", "..", "猫", "dog")
HEAD = b"P6 1 1 255\n"  # the smallest picture that there is
LENGTH = 12


def act(project, rng):
    """Make one step of a person; it depends on the generator and on the contents."""
    contents = project.contents
    classes = sorted(contents.classes)
    keys = sorted(one.key for one in contents.pictures())
    labelled = sorted(one.key for each in contents.classes.values() for one in each)
    uploads = [Upload("x", HEAD + bytes([rng.randrange(4), 0, 0])) for _ in range(2)]
    free = [name for name in NAMES if name not in classes]
    name, other, key = (rng.choice(some or [""]) for some in (classes, free, keys))
    possible = {
        "add_class": bool(free),
        "add_pictures": bool(classes),
        "add_unlabelled": True,
        "label_pictures": bool(classes and keys),
        "remove_pictures": bool(labelled),
        "rename_class": bool(classes and free),
        "remove_class": len(classes) > 1,
        "undo": True,
    }
    names = ["add_pictures", "add_pictures", "remove_pictures", *possible]
    step = rng.choice([one for one in names if possible[one]])
    method, *arguments = {
        "add_class": (project.add_class, other),
        "add_pictures": (project.add_pictures, name, uploads),
        "add_unlabelled": (project.add_pictures, None, uploads),
        "label_pictures": (project.label_pictures, [key], name),
        "remove_pictures": (project.remove_pictures, rng.sample(labelled, min(2, len(labelled)))),
        "rename_class": (project.rename_class, name, other),
        "remove_class": (project.remove_class, name),
        "undo": (project.undo,),
    }[step]
    method(*arguments)


def state(project):
    """Numbers of the pictures of each class, and of those without one."""
    read = lambda those: sorted(one.path.read_bytes()[len(HEAD)] for one in those)  # noqa: E731
    return {name: read(each) for name, each in project.contents.classes.items()} | {
        "": read(project.contents.unlabelled)
    }


def check(root, allowed):
    """Opened again, a project is in one of the states, says so to others, and can be undone to nothing."""
    with Project(root) as project:
        found = state(project)
        assert found in allowed, (found, allowed)
        named = {folder: name for name, folder in project.contents.folders.items() if folder != name}
        file = root / ".studio" / "class_names.json"
        assert (json.loads(file.read_text()) if file.exists() else {}) == named
        assert not list((root / ".studio").rglob(".*"))
    with Project(root) as project:
        assert state(project) == found
        while project.next_undo:
            project.undo()
        assert state(project) == {"": []}
    assert [path.name for path in root.iterdir()] == [".studio"]


def killed(operations, root, seed, at):
    """Kill a child; how many things it had done, by what it said."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        with Project(root) as project, operations.killed(at):
            rng = random.Random(seed)
            for _ in range(LENGTH):
                act(project, rng)
                os.write(writing, b".")
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        done = len(file.read())
    os.waitpid(child, 0)
    return done


def failed(around, root, seed, at):
    """Have an operation fail; how many things were done, by what was said. The page shows what is there."""
    rng = random.Random(seed)
    done = 0
    with Project(root) as project:
        with around(at), suppress(InputError):
            while done < LENGTH:
                before = state(project)
                act(project, rng)
                done += 1
        if done == LENGTH:
            return done
        shown = state(project)
        project.refresh()
        assert shown == state(project) == before, (shown, state(project), before)
    return done


def main(operations, folder, seed):
    root = folder / "plain"
    rng, states = random.Random(seed), []
    with Project(root) as project:
        states.append(state(project))
        with operations.counted():
            for _ in range(LENGTH):
                act(project, rng)
                states.append(state(project))
    points = range(seed % 2, operations.count, 2)
    for way, at in product(("killed", "failing", "full"), points):
        root = folder / f"{way}{at}"
        if way == "killed":
            done = killed(operations, root, seed, at)
            check(root, states[done : done + 2])
        else:
            done = failed(getattr(operations, way), root, seed, at)
            check(root, states[done : done + 1])
        shutil.rmtree(root)
    sys.stdout.write(str(3 * len(points)))


if __name__ == "__main__":
    from file_operations import Operations  # beside this file, and found only where it is run

    main(Operations(sys.argv[1]), Path(sys.argv[1]), int(sys.argv[2]))
