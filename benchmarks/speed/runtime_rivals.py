"""An exported model beside AdaptShot: from nothing to the first answer, and the most memory on the way.

    python benchmarks/speed/runtime_rivals.py MODEL.onnx SHOTS PHOTO --python PATH --rival-python PATH

SHOTS is the folder of classes that the model was fitted on: AdaptShot learns the same pictures (copies in colour, since
it reads no others), which is not timed. Each tool runs in an environment of its own with what it needs alone:
`pip install 'clipadapter[runtime]'` for the one, `pip install adaptshot` for the other. Runs take turns; printed are
the median and the range.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _output import add_json, summarise, write_json
from command_times import user_environment

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


def measured(command):
    """Seconds from start to end, MB at most, and what was printed."""
    start = time.perf_counter()
    environment = user_environment()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)
    said = process.stdout.read().strip()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        sys.exit(f"{command[:3]} ended with {status}")
    return seconds, usage.ru_maxrss / 1024, said


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
    paths = sorted(path for path in Path(shots).rglob("*") if path.is_file())
    task, out = folder / "task.json", folder / "adaptshot.json"
    task.write_text(json.dumps([list(map(str, paths)), [path.parent.name for path in paths], str(out)]))
    done = subprocess.run([python, "-c", LEARN, str(task)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "shots", "photo"):
        parser.add_argument(name)
    parser.add_argument("--python", default=sys.executable, help="of an environment with clipadapter[runtime]")
    parser.add_argument("--rival-python", help="of an environment with adaptshot")
    parser.add_argument("--runs", type=int, default=9)
    add_json(parser)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        commands = {
            "clipadapter, Python": [args.python, "-c", OURS, args.model, args.photo],
            "clipadapter, shell": [args.python, "-m", "clipadapter", "predict", args.model, args.photo],
        }
        if args.rival_python:
            state = learned(args.rival_python, args.shots, Path(folder))
            commands["adaptshot, Python"] = [args.rival_python, "-c", THEIRS, str(state), args.photo]
        found = {name: [] for name in commands}
        for i in range(args.runs + 1):
            for name, command in commands.items():
                run = measured(command)
                if i:  # the first fills the caches
                    found[name].append(run)
    # This interpreter has packages that the file does not need.
    sizes = {"clipadapter": None if args.python == sys.executable else installed(args.python)}
    if args.rival_python:
        sizes["adaptshot"] = installed(args.rival_python)
    rows = []
    print("| | seconds to the first answer | range | peak MB | installed MB | said |\n|---|---:|---:|---:|---:|---|")
    for name, runs in found.items():
        seconds, memory = [run[0] for run in runs], statistics.median(run[1] for run in runs)
        size = sizes[name.partition(",")[0]]
        spread = f"{min(seconds):.2f} to {max(seconds):.2f}"
        shown = "" if size is None else f"{size:.0f}"
        rows.append({"name": name, "seconds": summarise(seconds), "mb": memory, "installed_mb": size})
        print(f"| {name} | {statistics.median(seconds):.2f} | {spread} | {memory:.0f} | {shown} | {runs[0][2]} |")
    write_json(args.json, runs=args.runs, rows=rows)


if __name__ == "__main__":
    main()
