"""What the tests of the launchers have done by workers: functions that any process can import, text in, texts out."""

import atexit
import os
import signal
import time
from pathlib import Path


def upper(text):
    return [text.upper()]


def kill(text):
    """Kills its own process: ``once|FILE`` the first time, which the file tells; ``bad|FOLDER`` always, and counts."""
    name, _, place = text.partition("|")
    if name == "once" and not Path(place).exists():
        Path(place).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "bad":
        with (Path(place) / "deaths").open("a") as file:
            file.write("x")
        time.sleep(0.2)  # until its neighbour works
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.3)
    return [name]


def linger(text):
    """FOLDER: tells its process's number there, and then takes very long; FOLDER|NAME: answers at once."""
    folder, _, name = text.partition("|")
    if not name:
        (Path(folder) / str(os.getpid())).touch()
        time.sleep(600)
    return [name]


def slow_to_leave(text):
    """Answers at once; its process would take ten minutes to end by itself."""
    atexit.register(time.sleep, 600)
    return [text]


def fail(text):
    raise LookupError(f"no {text}")


def see_gpu(text):
    """FOLDER|NAME: GPU and lock of bars of its process, once two told theirs: one alone could do both jobs."""
    from tqdm import tqdm

    folder = Path(text.partition("|")[0])
    (folder / str(os.getpid())).touch()
    end = time.monotonic() + 120
    while len(list(folder.iterdir())) < 2 and time.monotonic() < end:
        time.sleep(0.02)
    return [os.environ["CUDA_VISIBLE_DEVICES"], type(tqdm.get_lock()).__name__]
