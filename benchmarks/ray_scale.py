"""Extraction on a Ray cluster of several nodes, one of which is killed: rows lost, rows twice, memory, rate.

    python benchmarks/ray_scale.py --pictures 10000 --encoder lite      # folders of class folders, on this machine
    python benchmarks/ray_scale.py --pictures 10000 --tars 200          # WebDataset archives of 200 pictures each
    python benchmarks/ray_scale.py --pictures 10000 --s3                # pictures and shards on an S3 server (moto)
    python benchmarks/ray_scale.py --pictures 10000 --namespaces        # head and node in two network namespaces

Every node is a `ray start` of its own with its own address: the head has no cores, each other node has `--cores`. The
pictures are generated: 64 x 64 JPEGs of ten classes, every 997th unreadable. When a third of the shards exist, one node
and all its processes get SIGKILL. Afterwards the rows of all shards are compared with the list of the pictures, a
sample of the features with `extract` in one process, and the memory of the driver and of each worker in the first third
of the run with that in the last third. "One process" is `extract` on this sample, in the same run, with all cores;
"one core" is the same on one core, and the rate r of docs/guides/many-pictures.md: hours = N / (3600 * cores * r).

Rates of a machine that others use are worth little: CPU seconds per picture are those of the processes alone.
`--s3` needs `pip install 'moto[server]'`, in this environment or in the one that `--moto PYTHON` names. `--namespaces`
needs root and the commands `ip` and `tc`; `--rate 100mbit` limits the link between them.
"""

import argparse
import contextlib
import io
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from clipadapter.features.collection import open_filesystem
from clipadapter.features.shards import read_plan

CLASSES = 10
UNREADABLE_EVERY = 997
SIDE = 64
BYTES_PER_SHARD = 2400
SAMPLE_SECONDS = 0.5
MIN_RUN_SAMPLES = 6
WORKED_TO_THE_END = 0.8
"""Share of the run after which a worker was seen; a killed one was not."""
HEAD_ADDRESS, NODE_ADDRESS = "10.77.0.1", "10.77.0.2"
NAMESPACE = "clipadapter-ray"
BUCKET = "clipadapter-scale"
DRIVER = """
import json, sys, time
from clipadapter.features.ray_extract import extract_with_ray
source, encoder, out, options = sys.argv[1:]
start = time.monotonic()
report = extract_with_ray(source, encoder, out, **json.loads(options))
print(json.dumps({**vars(report), "seconds": time.monotonic() - start}))
"""
ONE_PROCESS = """
import json, os, sys, time
from pathlib import Path
if sys.argv[5] == "1":
    os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
import numpy as np
from clipadapter.encoders import create_encoder
from clipadapter.features import FeatureStore, extract
paths = Path(sys.argv[1]).read_text().splitlines()
encoder = create_encoder(sys.argv[2])
extract(encoder, paths[:64])
start, cpu = time.monotonic(), time.process_time()
with FeatureStore(sys.argv[4]) as store:
    result = extract(encoder, paths, store=store)
print(json.dumps({"seconds": time.monotonic() - start, "cpu": time.process_time() - cpu}))
np.savez(sys.argv[3], features=result.features[:, 0], rows=np.array(result.rows))
"""


def main() -> None:
    args = parse_arguments()
    args.work.mkdir(parents=True, exist_ok=True)
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
    load = os.getloadavg()[0]
    result: dict[str, Any] = {"pictures": args.pictures, "encoder": args.encoder, "load before": round(load, 2)}
    pictures = args.work / f"pictures-{args.pictures}"
    start = time.monotonic()
    make_pictures(pictures, args.pictures)
    result["seconds to make the pictures"] = round(time.monotonic() - start, 1)
    names = sorted(str(path.relative_to(pictures)) for path in pictures.rglob("*.jpg"))
    result["one core"], _ = run_one_process(args, pictures, names, one_core=True)
    result["one process"], reference = run_one_process(args, pictures, names)
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rs-")))
        in_namespace = stack.enter_context(make_namespace(args.rate)) if args.namespaces else False
        source, target = str(pictures), str(scratch / "shards")
        if args.s3:
            stack.enter_context(start_s3(args.moto, HEAD_ADDRESS if in_namespace else "127.0.0.1"))
            upload(pictures, names, args.tars)
            source, target = f"s3://{BUCKET}/pictures", f"s3://{BUCKET}/shards"
        elif args.tars:
            source = str(scratch / "tars")
            Path(source).mkdir()
            for name, data in make_archives(pictures, names, args.tars):
                Path(source, name).write_bytes(data)
        cluster = stack.enter_context(start_cluster(args.nodes, args.cores, scratch, in_namespace))
        before = link_bytes() if in_namespace else None
        result |= run_driver(args, cluster, source, target)
        if before:
            to_node, from_node = (round((b - a) / args.pictures) for a, b in zip(before, link_bytes(), strict=True))
            result["bytes/picture"] = {"to the node": to_node, "from the node": from_node}
        result |= check_rows(target, names, reference, args)
        result["rate beside one process"] = round(result["pictures/s"] / result["one process"]["pictures/s"], 2)
        result["model"] = compare_with_model(args, result)
        if args.repeat:
            again = run_driver(args, cluster, source, target, kill=False)
            result["repeated call"] = {
                "seconds": again["seconds"],
                "reused": again["report"]["reused"],
                "driver MB": again["memory"]["driver"]["peak"],
            }
    result["load after"] = round(os.getloadavg()[0], 2)
    print(json.dumps(result, indent=1))
    if result["rows lost"] or result["rows twice"] or result["unexpected errors"] or result["far features"]:
        sys.exit("rows were lost, doubled or wrong")
    if result["features compared"] != len(reference):
        sys.exit(f"{result['features compared']} features were compared with {len(reference)} of one process")
    if result["report"]["pictures"] != args.pictures or result["report"]["unreadable"] != result["unreadable"]:
        sys.exit("the report counts other pictures than were made")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=10_000)
    parser.add_argument("--encoder", default="lite")
    parser.add_argument("--nodes", type=int, default=3, help="nodes besides the head")
    parser.add_argument("--cores", type=int, default=1, help="cores of each node")
    parser.add_argument("--shard-size", type=int, default=500)
    parser.add_argument("--sample", type=int, default=1000, help="pictures of the run of one process")
    parser.add_argument("--no-kill", action="store_true")
    parser.add_argument("--repeat", action="store_true", help="call again when all shards exist")
    parser.add_argument("--s3", action="store_true")
    parser.add_argument("--tars", type=int, default=0, help="archives of so many pictures, not single files")
    parser.add_argument("--moto", default=sys.executable, help="Python of the environment that has moto")
    parser.add_argument("--namespaces", action="store_true")
    parser.add_argument("--rate", help="with --namespaces: rate of the link, such as 100mbit")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "clipadapter-ray-scale")
    return parser.parse_args()


# ---- Pictures ----


def make_pictures(folder: Path, count: int) -> None:
    """Write pictures that differ from each other, the same on each call; nothing if the folder is complete."""
    marker = folder.with_suffix(".complete")
    if marker.exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    for label in range(CLASSES):
        (folder / f"class-{label}").mkdir(parents=True)
    for number in range(count):
        path = folder / f"class-{number % CLASSES}" / f"{number:08}.jpg"
        path.write_bytes(b"no picture" if is_unreadable(number) else make_jpeg(number))
    marker.touch()


def is_unreadable(number: int) -> bool:
    return number % UNREADABLE_EVERY == UNREADABLE_EVERY - 1


def make_jpeg(number: int) -> bytes:
    """A smooth pattern whose colour depends on the class, with grain: about 2 kB, as pictures of EuroSAT."""
    random = np.random.default_rng(number)
    coarse = random.integers(0, 256, (5, 5, 3), dtype=np.uint8)
    coarse[..., number % 3] //= 1 + number % CLASSES
    smooth = np.asarray(Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BILINEAR), np.int16)
    grain = random.integers(-12, 13, (SIDE, SIDE, 1), dtype=np.int16)
    file = io.BytesIO()
    Image.fromarray(np.clip(smooth + grain, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=85)
    return file.getvalue()


# ---- Rivals and the run itself ----


def run_one_process(
    args: argparse.Namespace, pictures: Path, names: Sequence[str], one_core: bool = False
) -> tuple[dict[str, Any], Any]:
    """Rate and features of `extract` on a sample of all pictures, as `embed` computes them."""
    sample = list(names[:: max(1, len(names) // args.sample)])[: args.sample]
    with tempfile.TemporaryDirectory() as folder:
        listing, features = Path(folder) / "paths.txt", Path(folder) / "features.npz"
        listing.write_text("\n".join(str(pictures / name) for name in sample))
        command = [sys.executable, "-c", ONE_PROCESS, listing, args.encoder, features, Path(folder) / "store.sqlite"]
        command.append("1" if one_core else "")
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        measured = json.loads(output.splitlines()[-1])
        arrays = np.load(features)
        reference = {
            Path(sample[row]).name: feature for row, feature in zip(arrays["rows"], arrays["features"], strict=True)
        }
    report = {
        "pictures": len(sample),
        "pictures/s": round(len(sample) / measured["seconds"], 1),
        "CPU ms/picture": round(1000 * measured["cpu"] / len(sample), 2),
    }
    return report, reference


@dataclass
class Cluster:
    """The address of the head, and the `ray start` process of each node; the head is the first."""

    address: str
    nodes: list[subprocess.Popen[bytes]] = field(default_factory=list)


@contextlib.contextmanager
def start_cluster(nodes: int, cores: int, scratch: Path, in_namespace: bool) -> Iterator[Cluster]:
    """Start a head without cores and nodes with cores, each with an address of its own."""
    port = free_port()
    head_address = HEAD_ADDRESS if in_namespace else "127.0.0.1"
    cluster = Cluster(f"{head_address}:{port}")
    shared = ["--block", "--disable-usage-stats", f"--object-store-memory={200 << 20}"]
    # On a busy machine a node may take longer than the 30 seconds that Ray allows.
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "RAY_raylet_start_wait_time_s": "120"}
    environment.pop("RAY_ADDRESS", None)

    def start(name: str, arguments: Sequence[str], namespace: bool = False) -> None:
        prefix = ["ip", "netns", "exec", NAMESPACE] if namespace else []
        ray = [sys.executable, "-c", "from ray.scripts.scripts import main; main()", "start", *shared, *arguments]
        log = scratch / f"{name}.log"
        with log.open("wb") as stream:
            process = subprocess.Popen([*prefix, *ray], env=environment, stdout=stream, stderr=stream)
        cluster.nodes.append(process)
        wait_until_started(process, log)

    try:
        options = ["--head", f"--port={port}", f"--node-ip-address={head_address}", f"--temp-dir={scratch / 'ray'}"]
        start("head", [*options, "--num-cpus=0", "--include-dashboard=false"])
        for number in range(nodes):
            address = NODE_ADDRESS if in_namespace else f"127.0.0.{number + 2}"
            options = [f"--address={cluster.address}", f"--node-ip-address={address}", f"--num-cpus={cores}"]
            start(f"node-{number}", options, in_namespace)
        yield cluster
    finally:
        for process in cluster.nodes:
            kill_tree(process.pid)
            process.wait()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def wait_for_port(host: str, port: int, seconds: float = 60) -> None:
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        with contextlib.suppress(OSError), socket.create_connection((host, port), 1):
            return
        time.sleep(0.1)
    raise SystemExit(f"nothing listens on {host}:{port} after {seconds:.0f} s")


def wait_until_started(process: subprocess.Popen[bytes], log: Path, seconds: float = 120) -> None:
    limit = time.monotonic() + seconds
    while "Ray runtime started" not in log.read_text(errors="replace"):
        if process.poll() is not None or time.monotonic() > limit:
            raise SystemExit(f"a node did not start:\n{log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.1)


def kill_tree(pid: int) -> int:
    """SIGKILL for a process that this script started and for everything below it. Returns how many there were."""
    try:
        process = psutil.Process(pid)
        processes = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    for one in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.send_signal(signal.SIGKILL)
    return len(processes)


class Watcher(threading.Thread):
    """Records memory and CPU seconds of the driver and of each worker while the driver runs."""

    def __init__(self, driver: int, cluster: Cluster) -> None:
        super().__init__(daemon=True)
        self.driver, self.cluster, self.ended = driver, cluster, threading.Event()
        self.memory: dict[str, list[tuple[float, float]]] = {}
        self.cpu: dict[str, float] = {}

    def run(self) -> None:
        start = time.monotonic()
        while not self.ended.wait(SAMPLE_SECONDS):
            seconds = time.monotonic() - start
            self._sample("driver", self.driver, seconds)
            for node in self.cluster.nodes:
                with contextlib.suppress(psutil.Error):
                    for child in psutil.Process(node.pid).children(recursive=True):
                        if child.name().startswith("ray::"):
                            self._sample(f"worker {child.pid}", child.pid, seconds)

    def _sample(self, name: str, pid: int, seconds: float) -> None:
        with contextlib.suppress(psutil.Error, OSError):
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            kilobytes = next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
            times = psutil.Process(pid).cpu_times()
            self.memory.setdefault(name, []).append((seconds, kilobytes / 1024))
            self.cpu[name] = times.user + times.system

    def report(self) -> dict[str, Any]:
        """Peaks in MB: of the driver, and of the worker with the highest among those that worked to the end."""
        end = max(seconds for seconds, _ in self.memory["driver"])
        workers = {name: values for name, values in self.memory.items() if name != "driver" and self.cpu[name] > 1}
        last = [values for values in workers.values() if values[-1][0] > end * WORKED_TO_THE_END]
        largest = max(last, key=lambda values: max(mb for _, mb in values), default=[])
        return {
            "driver": thirds(self.memory["driver"]),
            "largest worker": thirds(largest) if len(largest) >= MIN_RUN_SAMPLES else None,
            "workers": len(workers),
        }

    def worker_cpu(self) -> float:
        return sum(cpu for name, cpu in dict(self.cpu).items() if name != "driver")


def thirds(values: Sequence[tuple[float, float]]) -> dict[str, float | None]:
    """The highest value of all, of the first and of the last third of the life of a process."""
    start, end = values[0][0], values[-1][0]

    def peak(low: float, high: float) -> float | None:
        inside = [mb for seconds, mb in values if low <= (seconds - start) / (end - start) <= high]
        return round(max(inside), 1) if inside else None

    return {"peak": peak(0, 1), "first third": peak(0, 1 / 3), "last third": peak(2 / 3, 1)}


def run_driver(
    args: argparse.Namespace, cluster: Cluster, source: str, target: str, kill: bool = True
) -> dict[str, Any]:
    """Call `extract_with_ray` in a process of its own; a third of the way through, kill a node."""
    options = json.dumps({"shard_size": args.shard_size})
    command = [sys.executable, "-c", DRIVER, source, args.encoder, target, options]
    environment = {**os.environ, "RAY_ADDRESS": cluster.address}
    with tempfile.TemporaryFile("w+") as errors:
        driver = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True)
        watcher = Watcher(driver.pid, cluster)
        watcher.start()
        first_shard, third = wait_for_third(driver, target)
        cpu_before, time_before = watcher.worker_cpu(), time.monotonic()
        killed = kill_last_node(cluster) if third and kill and not args.no_kill else None
        output, _ = driver.communicate()
        later_seconds = time.monotonic() - time_before
        watcher.ended.set()
        watcher.join()
        if driver.returncode:
            errors.seek(0)
            raise SystemExit(f"the driver failed:\n{errors.read()[-4000:]}")
    report = json.loads(output.splitlines()[-1])
    seconds = report.pop("seconds")
    later = (1 - third) * args.pictures if third else 0
    return {
        "report": report,
        "seconds": round(seconds, 1),
        "seconds to the first shard, imports included": first_shard,
        "pictures/s": round(args.pictures / seconds, 1),
        "CPU ms/picture": round(1000 * watcher.worker_cpu() / args.pictures, 2),
        "after the first third": round(1000 * (watcher.worker_cpu() - cpu_before) / later, 2) if later else None,
        "share of the first third": third,
        "seconds after it": round(later_seconds, 1) if third else None,
        "driver CPU s": round(watcher.cpu["driver"], 1),
        "killed": killed,
        "memory": watcher.report(),
    }


def wait_for_third(driver: subprocess.Popen[str], target: str) -> tuple[float | None, float | None]:
    """Wait until a third of the shards exist.

    Returns:
        The seconds from the start of the driver's process to the first shard, and the share of shards that exist; None
        if the driver ended first.
    """
    system, folder = open_filesystem(target)
    start, first_shard = time.monotonic(), None
    while driver.poll() is None:
        with contextlib.suppress(Exception):
            written = count_shards(system, folder)
            if written and first_shard is None:
                first_shard = round(time.monotonic() - start, 1)
            share = written / len(read_plan(system, folder).shards)
            if 1 / 3 <= share < 1:
                return first_shard, share
        time.sleep(0.1)
    return first_shard, None


def kill_last_node(cluster: Cluster) -> str:
    node = cluster.nodes.pop()
    processes = kill_tree(node.pid)
    node.wait()
    return f"{processes} processes of one node"


def compare_with_model(args: argparse.Namespace, result: dict[str, Any]) -> dict[str, Any]:
    """What docs/guides/many-pictures.md predicts from the run on one core and the width, beside what was measured."""
    one, share = result["one core"], result["share of the first third"]
    left = args.nodes if result["killed"] is None else args.nodes - 1

    def predict_seconds(pictures: float, nodes: int) -> float:
        return pictures / (min(nodes * args.cores, os.cpu_count() or 1) * one["pictures/s"])

    row_bytes = 4 * result["width"] + 89 + BYTES_PER_SHARD * result["shards"] / args.pictures
    rows = {"bytes per row": (round(row_bytes), result["bytes per row"])}
    before = args.pictures * (share or 1)
    seconds = predict_seconds(before, args.nodes)
    if share:
        later = predict_seconds(args.pictures - before, left)
        rows["CPU ms/picture after the first third"] = (one["CPU ms/picture"], result["after the first third"])
        rows["seconds after the first third"] = (round(later, 1), result["seconds after it"])
        seconds += later
    rows["seconds of the call"] = (round(seconds, 1), result["seconds"])
    rows["hours of the call"] = (round(seconds / 3600, 4), round(result["seconds"] / 3600, 4))
    return {
        name: {"predicted": predicted, "measured": measured, "error %": round(100 * (predicted / measured - 1), 1)}
        for name, (predicted, measured) in rows.items()
    }


def count_shards(system: Any, folder: str) -> int:
    from pyarrow.fs import FileSelector

    names = (info.base_name for info in system.get_file_info(FileSelector(folder)))
    return sum(name.endswith(".parquet") for name in names)


# ---- Checks ----


def check_rows(
    target: str, names: Sequence[str], reference: dict[str, Any], args: argparse.Namespace
) -> dict[str, Any]:
    """Compare the rows of all shards with the pictures that were made."""
    from pyarrow import parquet

    system, folder = open_filesystem(target)
    rows: Counter[str] = Counter()
    errors, far, compared, size = set(), 0, 0, 0
    plan = read_plan(system, folder)
    for name in plan.shards:
        info = system.get_file_info(f"{folder}/{name}")
        size += info.size
        with system.open_input_file(info.path) as file:
            table = parquet.read_table(file)
        for row in table.to_pylist():
            key = row["path"].split("/")[-1]  # differs from picture to picture, also in archives
            rows[key] += 1
            if row["error"]:
                errors.add(key)
            elif key in reference:
                compared += 1
                far += not np.allclose(row["feature"], reference[key], atol=1e-4)
    expected = {name.split("/")[-1] for name in names}
    bad = {name for name in expected if is_unreadable(int(Path(name).stem))}
    return {
        "shards": len(plan.shards),
        "width": plan.dim,
        "bytes per row": round(size / max(1, sum(rows.values()))),
        "rows lost": len(expected - rows.keys()),
        "rows twice": sum(count > 1 for count in rows.values()) + len(rows.keys() - expected),
        "unreadable": len(bad),
        "unexpected errors": len(errors ^ bad),
        "features compared": compared,
        "far features": far,
    }


# ---- An S3 server, and a second machine ----


@contextlib.contextmanager
def start_s3(python: str, host: str) -> Iterator[None]:
    """A moto server on this machine, and the environment variables that name it, as a user would set them."""
    port = free_port()
    command = [python, "-m", "moto.server", "-H", host, "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    try:
        wait_for_port(host, port)
        yield
    finally:
        kill_tree(server.pid)
        server.wait()


def upload(pictures: Path, names: Sequence[str], per_archive: int) -> None:
    """Copy the pictures to the bucket: as they are, or as WebDataset archives."""
    from concurrent.futures import ThreadPoolExecutor

    from pyarrow.fs import S3FileSystem

    system = S3FileSystem(
        endpoint_override=os.environ["AWS_ENDPOINT_URL"], region="us-east-1", allow_bucket_creation=True
    )
    system.create_dir(BUCKET)

    def put(path: str, data: bytes) -> None:
        with system.open_output_stream(path) as stream:
            stream.write(data)

    if not per_archive:
        with ThreadPoolExecutor(4) as pool:
            for _ in pool.map(lambda name: put(f"{BUCKET}/pictures/{name}", (pictures / name).read_bytes()), names):
                pass
        return
    for name, data in make_archives(pictures, names, per_archive):
        put(f"{BUCKET}/pictures/{name}", data)


def make_archives(pictures: Path, names: Sequence[str], per_archive: int) -> Iterator[tuple[str, bytes]]:
    """Name and content of WebDataset archives."""
    for start in range(0, len(names), per_archive):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w") as archive:
            for name in names[start : start + per_archive]:
                key = Path(name).stem
                add_member(archive, f"{key}.cls", name.split("/")[0].encode())
                add_member(archive, f"{key}.jpg", (pictures / name).read_bytes())
        yield f"{start:08}.tar", file.getvalue()


def add_member(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


@contextlib.contextmanager
def make_namespace(rate: str | None) -> Iterator[bool]:
    """A network namespace joined to this one by a pair of virtual interfaces: a second machine, as to the network."""
    if os.geteuid() != 0 or not shutil.which("ip"):
        raise SystemExit("--namespaces makes a network namespace: it needs root and the command 'ip'; leave it out")

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True)

    ip("netns", "add", NAMESPACE)
    try:
        ip("link", "add", "clipray0", "type", "veth", "peer", "name", "clipray1", "netns", NAMESPACE)
        ip("addr", "add", f"{HEAD_ADDRESS}/24", "dev", "clipray0")
        ip("link", "set", "clipray0", "up")
        ip("-n", NAMESPACE, "addr", "add", f"{NODE_ADDRESS}/24", "dev", "clipray1")
        ip("-n", NAMESPACE, "link", "set", "clipray1", "up")
        ip("-n", NAMESPACE, "link", "set", "lo", "up")
        if rate:
            limit = ["root", "tbf", "rate", rate, "burst", "256kbit", "latency", "400ms"]
            subprocess.run(["tc", "qdisc", "add", "dev", "clipray0", *limit], check=True)
            subprocess.run(["tc", "-n", NAMESPACE, "qdisc", "add", "dev", "clipray1", *limit], check=True)
        yield True
    finally:
        subprocess.run(["ip", "netns", "del", NAMESPACE], check=False)
        subprocess.run(["ip", "link", "del", "clipray0"], check=False, stderr=subprocess.DEVNULL)


def link_bytes() -> tuple[int, int]:
    """Bytes that were sent to the node, and received from it."""
    folder = Path("/sys/class/net/clipray0/statistics")
    return tuple(int((folder / name).read_text()) for name in ("tx_bytes", "rx_bytes"))


if __name__ == "__main__":
    main()
