"""An exported model beside AdaptShot: from nothing to the first answer, and the most memory on the way.

    python benchmarks/speed/runtime_rivals.py MODEL.onnx SHOTS PHOTO --python PATH --rival-python PATH

SHOTS is the folder of classes that the model was fitted on: AdaptShot learns the same pictures (copies in colour, since
it reads no others), which is not timed. Each tool runs in an environment of its own with what it needs alone:
`pip install 'clipadapter[runtime]'` for the one, `pip install adaptshot` for the other. Runs take turns.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from _measure import find_pictures, print_table, run_command, script_parser, summarise, write_json

OURS = "import sys; from clipadapter.runtime import Predictor; print(Predictor(sys.argv[1]).predict([sys.argv[2]])[0])"
THEIRS = """
import sys
from adaptshot import FewShotLearner
print(FewShotLearner.load(sys.argv[1]).predict(sys.argv[2]).prediction)
"""
LEARN = """
import json, sys
from adaptshot import FewShotLearner
from PIL import Image
paths, labels, out = json.load(open(sys.argv[1]))
copies = [f"{out}.{i}.png" for i in range(len(paths))]
for path, copy in zip(paths, copies):
    Image.open(path).convert("RGB").save(copy)
learner = FewShotLearner()
learner.load_support_images(copies, labels)
learner.save(out)
"""


def installed(python):
    """MB of the environment's packages but pip and setuptools, which run nothing."""
    code = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    folder = Path(subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip())
    every = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    tools = {"pip", "setuptools", "pkg_resources", "_distutils_hack"}
    own = (path for path in every if path.relative_to(folder).parts[0].split("-")[0] not in tools)
    return sum(path.stat().st_size for path in own if "__pycache__" not in path.parts) / 2**20


def learned(python, shots, folder):
    """AdaptShot's state after the same shots."""
    paths = find_pictures(Path(shots))
    task, out = folder / "task.json", folder / "adaptshot.json"
    task.write_text(json.dumps([list(map(str, paths)), [path.parent.name for path in paths], str(out)]))
    run_command([python, "-c", LEARN, str(task)])
    return out


def main():
    parser = script_parser(__doc__)
    for name in ("model", "shots", "photo"):
        parser.add_argument(name)
    parser.add_argument("--python", default=sys.executable, help="of an environment with clipadapter[runtime]")
    parser.add_argument("--rival-python", help="of an environment with adaptshot")
    parser.add_argument("--runs", type=int, default=9)
    args = parser.parse_args()
    # This interpreter has packages that the file does not need.
    sizes = {"clipadapter": None if args.python == sys.executable else installed(args.python)}
    commands = {
        "clipadapter, Python": [args.python, "-c", OURS, args.model, args.photo],
        "clipadapter, shell": [args.python, "-m", "clipadapter", "predict", args.model, args.photo],
    }
    with tempfile.TemporaryDirectory() as folder:
        if args.rival_python:
            sizes["adaptshot"] = installed(args.rival_python)
            state = learned(args.rival_python, args.shots, Path(folder))
            commands["adaptshot, Python"] = [args.rival_python, "-c", THEIRS, str(state), args.photo]
        rounds = [
            {name: run_command(command, output=Path(folder) / name) for name, command in commands.items()}
            for _ in range(args.runs + 1)
        ][1:]  # the first fills the caches
        answers = {name: (Path(folder) / name).read_text().strip() for name in commands}
    rows = []
    for name, answer in answers.items():
        seconds, memory = (summarise(each[name][unit] for each in rounds) for unit in ("seconds", "mb"))
        size = sizes[name.partition(",")[0]]
        rows.append({"name": name, "seconds": seconds, "mb": memory["median"], "installed_mb": size, "answer": answer})
    print_table(rows)
    write_json(args.json, runs=args.runs, rows=rows)


if __name__ == "__main__":
    main()
