"""`clipadapter serve` under load, on this machine: its share of the offline rate, latency, overload, memory, nonsense.

Clients and server share the cores. The load comes from wrk (package wrk), in turns with the offline rate of the same
file on the same pictures; where other programs use the machine, trust the share by seconds of CPU rather than the one
by the clock. For latency and overload, so many connections wait between their requests that these leave evenly at the
rate that is named, whether or not others were answered. Malformed requests are the corpus of
tests/robustness/server_corpus.py and those that schemathesis draws from the server's OpenAPI page.

    python benchmarks/service/serve_load.py model.onnx PICTURES
    python benchmarks/service/serve_load.py model.onnx PICTURES --rounds 1 --seconds 3       # to try it
    python benchmarks/service/serve_load.py model.onnx PICTURES --only soak --soak 10
    python benchmarks/service/serve_load.py model.onnx PICTURES --only malformed --malformed 10000
"""

import argparse
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from clipadapter.runtime import Predictor
from clipadapter.utils.files import IMAGE_SUFFIXES

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests" / "robustness"))
import server_corpus  # noqa: E402

PARTS = ("throughput", "latency", "overload", "soak", "malformed")
BODIES = 64  # different requests that go round
CONNECTIONS, MANY_CONNECTIONS = 16, 700  # of clients that ask again at once, and of those that wait; the limit is 800
NO_FAULTS = ["2xx", "3xx", "4xx", 503, 504]  # the last two: too many requests, too short a timeout
BOUNDARY = "edge-of-parts"
TYPE = f"multipart/form-data; boundary={BOUNDARY}"
SCRIPT = """
local bodies, at, started, threads = {}, 0, 0, {}
local connections, rate = %d, %f
counts = {}
setup = function(thread) table.insert(threads, thread) end
init = function(args)
  for name in io.popen('ls "%s"'):lines() do
    local file = io.open("%s/" .. name, "rb")
    local headers = {["Content-Type"] = "%s"}
    bodies[#bodies + 1] = wrk.format("POST", "/v1/predict", headers, file:read("*a"))
    file:close()
  end
end
request = function() at = at %% #bodies + 1; return bodies[at] end
if rate > 0 then
  delay = function() -- milliseconds; the connections start one after the other and then keep their distance
    started = started + 1
    return 1000 / rate * math.min(started, connections)
  end
  response = function(status, headers)
    local key = status
    for name in pairs(headers) do if name:lower() == "retry-after" then key = status .. " with Retry-After" end end
    counts[key] = (counts[key] or 0) + 1
  end
end
done = function(summary, latency)
  local texts = {}
  for key, count in pairs(threads[1]:get("counts")) do texts[#texts + 1] = string.format('"%%s": %%d', key, count) end
  local errors = summary.errors
  print(string.format('RESULT {"rate": %%f, "ms": %%f, "p99_ms": %%f, "failed": %%d, "not_2xx": %%d, "counts": {%%s}}',
    summary.requests / summary.duration * 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    errors.connect + errors.read + errors.write + errors.timeout, errors.status, table.concat(texts, ", ")))
end
"""
"""For wrk: connections, requests a second (0: as many as are answered), the folder of the bodies twice, their type."""


class Server:
    """The command as a process of its own."""

    def __init__(self, model: Path, *options: str) -> None:
        command = [sys.executable, "-m", "clipadapter", "serve", f"m={model}", "--port", "0", *options]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.events: Counter[str] = Counter()
        assert self.process.stderr is not None
        for line in self.process.stderr:
            event = json.loads(line)
            if event["event"] == "listening":
                self.url = event["url"].rstrip("/")
                break
        else:
            raise SystemExit("the server did not start")
        threading.Thread(target=self._count, daemon=True).start()

    def _count(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.events[json.loads(line)["level"] if line.startswith("{") else "no JSON"] += 1

    def cpu(self) -> float:
        """Seconds of CPU that it has used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory(self) -> float:
        """MiB that it holds."""
        return int(re.findall(r"VmRSS:\s+(\d+)", Path(f"/proc/{self.process.pid}/status").read_text())[0]) / 1024

    def pictures(self) -> int:
        """How many pictures have run. Requests that end with a measurement have no answer, but ran for a part."""
        text = urlopen(f"{self.url}/metrics").read().decode()
        return round(sum(map(float, re.findall(r"^clipadapter_batch_pictures_sum\S* (\S+)$", text, re.MULTILINE))))

    def end(self) -> int:
        self.process.terminate()
        return self.process.wait(60)


def form(paths: list[Path]) -> bytes:
    """Pictures as the body of a form."""
    parts = []
    for path in paths:
        head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="images"; filename="{path.name}"\r\n\r\n'
        parts.append(head.encode() + path.read_bytes() + b"\r\n")
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


def wrk(server: Server, bodies: list[bytes], seconds: float, rate: float = 0, connections: int = CONNECTIONS) -> dict:
    """What wrk says of so many requests a second; of as many as are answered, if no rate is given.

    Raises:
        SystemExit: without a rate, if one was not answered well.
    """
    with tempfile.TemporaryDirectory() as folder:
        place, script = Path(folder, "bodies"), Path(folder, "wrk.lua")
        place.mkdir()
        for i, body in enumerate(bodies):
            (place / f"{i:05}").write_bytes(body)
        script.write_text(SCRIPT % (connections, rate, place, place, TYPE))
        options = ["-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "30s", "-s", str(script)]
        output = subprocess.run(["wrk", *options, server.url], capture_output=True, text=True, check=True).stdout
    result = json.loads(output.partition("RESULT ")[2])
    if not rate and (result["failed"] or result["not_2xx"]):
        raise SystemExit(f"not all was answered:\n{output}")
    return result


def throughput(server: Server, model: Path, paths: list[Path], args: argparse.Namespace) -> float:
    """The two rates in turns; gives requests a second of one picture each."""
    predictor = Predictor(model, backend=args.backend, threads=args.threads)
    bodies = {k: [form([paths[(i * k + j) % len(paths)] for j in range(k)]) for i in range(BODIES)] for k in args.sizes}
    rates: dict[int, list[tuple[float, float]]] = {k: [] for k in args.sizes}
    offline = []
    for k in args.sizes:
        wrk(server, bodies[k], 1)  # to be warm
    for _ in range(args.rounds):
        clock, cpu, n = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() - clock < args.seconds:
            n += sum(1 for _ in predictor.iter_predictions(paths, batch_size=args.batch))
        offline.append((n / (time.perf_counter() - clock), 1e3 * (time.process_time() - cpu) / n))
        for k in args.sizes:
            cpu, before = server.cpu(), server.pictures()
            wrk(server, bodies[k], args.seconds)
            count = server.pictures() - before
            rates[k].append((count / max(1, round(args.seconds)), 1e3 * (server.cpu() - cpu) / max(1, count)))
    total_rate, cpu_per_picture = (statistics.median(values) for values in zip(*offline, strict=True))
    row("offline, pictures a second", f"{total_rate:.1f}", f"{cpu_per_picture:.2f} ms of CPU a picture")
    for k in args.sizes:
        rate, cpu = (statistics.median(values) for values in zip(*rates[k], strict=True))
        share = statistics.median(a[0] / b[0] for a, b in zip(rates[k], offline, strict=True))
        note = f"{100 * share:.0f} % of offline; {cpu:.2f} ms of CPU a picture ({100 * cpu_per_picture / cpu:.0f} %)"
        row(f"served, {k} a request, {CONNECTIONS} connections", f"{rate:.1f}", note)
    return statistics.median(rate for rate, _ in rates[min(rates)]) / min(rates)


def latency(server: Server, bodies: list[bytes], rate: float, seconds: float) -> None:
    result = wrk(server, bodies, max(seconds, 5), rate / 2, max(CONNECTIONS, round(rate)))
    label = f"at half load ({result['rate']:.0f} requests a second), ms"
    row(label, f"{result['ms']:.0f}", f"p99 {result['p99_ms']:.0f}, of {result['counts']}, {result['failed']} failed")


def overload(server: Server, bodies: list[bytes], rate: float, seconds: float) -> None:
    """Three times what it can do, then one request after another until it is as it was."""
    before = statistics.median(ask(server, bodies[0]) for _ in range(10))
    result = wrk(server, bodies, seconds, 3 * rate, MANY_CONNECTIONS)
    began = time.perf_counter()
    while ask(server, bodies[0]) >= 3 * before:
        time.sleep(0.02)
    recovery = time.perf_counter() - began
    note = f"{result['rate']:.0f} answers a second, {result['failed']} failed"
    row("three times the load, by status", str(result["counts"]), note)
    row("recovered, seconds after the last request", f"{recovery:.2f}", f"one picture in {1e3 * before:.0f} ms before")


def ask(server: Server, body: bytes) -> float:
    """Seconds to an answer on a new connection; infinite if it is refused."""
    start = time.perf_counter()
    try:
        urlopen(Request(f"{server.url}/v1/predict", body, {"Content-Type": TYPE})).read()
    except HTTPError:
        return float("inf")
    return time.perf_counter() - start


def soak(server: Server, bodies: list[bytes], minutes: float) -> None:
    samples: list[tuple[float, float]] = []
    over = threading.Event()

    def sample() -> None:
        began = time.perf_counter()
        while not over.wait(1):
            samples.append((time.perf_counter() - began, server.memory()))

    thread = threading.Thread(target=sample)
    thread.start()
    rate = wrk(server, bodies, 60 * minutes)["rate"]
    over.set()
    thread.join()
    steady = samples[len(samples) // 5 :]  # the first fifth warms up
    slope = statistics.linear_regression(*zip(*steady, strict=True)).slope * 60
    fifth = len(steady) // 5 + 1
    first, last = (statistics.median(m for _, m in part) for part in (steady[:fifth], steady[-fifth:]))
    label = f"soak of {minutes:g} minutes, MiB at its first and last fifth"
    row(label, f"{first:.0f} -> {last:.0f}", f"{slope:+.2f} a minute")
    row("requests a second meanwhile", f"{rate:.1f}", f"most {max(m for _, m in samples):.0f} MiB")


def malformed(server: Server, body: bytes, count: int) -> None:
    """Requests that are odd on the wire, then as many that are odd by their content."""
    address = server.url.removeprefix("http://").split(":")
    statuses: Counter[str] = Counter()
    for odd in [*server_corpus.heads(), *server_corpus.lengths(), *server_corpus.mutated(count)]:
        with socket.create_connection((address[0], int(address[1])), 30) as connection:
            try:
                connection.sendall(odd.data)
                connection.shutdown(socket.SHUT_WR)
                first = connection.makefile("rb").readline().split()
                statuses[first[1].decode() if len(first) > 1 else "closed"] += 1
            except (ConnectionError, TimeoutError) as error:
                statuses[type(error).__name__] += 1
    row(f"{sum(statuses.values())} malformed requests, by status", str(dict(sorted(statuses.items()))))
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json", "--mode", "all"]
    command += ["--checks", "not_a_server_error", "--max-examples", str(count), "--phases", "coverage,fuzzing"]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "schemathesis.toml").write_text(f"[checks.not_a_server_error]\nexpected-statuses = {NO_FAULTS}\n")
        drawn = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    row("requests by schemathesis", *re.findall(r"\d+ generated.*", drawn.stdout))
    row("answers still, ms", f"{1e3 * ask(server, body):.0f}", f"lines in its log: {dict(server.events)}")
    if statuses["500"] or drawn.returncode:
        raise SystemExit(f"a request broke the server\n{drawn.stdout[-5000:]}")


def row(label: str, value: str, note: str = "") -> None:
    print(f"| {label} | {value} | {note} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="an exported file")
    parser.add_argument("pictures", type=Path, help="a folder with pictures anywhere below it")
    parser.add_argument("--only", choices=PARTS, action="append", help="leave the others out; may be repeated")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=15, help="of each measurement")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 8], help="pictures a request")
    parser.add_argument("--batch", type=int, default=8, help="pictures that run at once, offline and served")
    parser.add_argument("--limit", type=int, default=256, help="pictures that are taken of the folder")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--soak", type=float, default=0, metavar="MINUTES")
    parser.add_argument("--malformed", type=int, default=1000, metavar="N")
    parser.add_argument("--serve", nargs="*", default=[], metavar="OPTION", help="for the server, as max-batch=16")
    args = parser.parse_args()
    if not shutil.which("wrk"):
        raise SystemExit("wrk is not installed: apt-get install wrk")
    paths = sorted(path for path in args.pictures.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    paths = paths[:: max(1, len(paths) // args.limit)][: args.limit]
    selected = set(args.only or PARTS)
    threads = [] if args.threads is None else ["--threads", str(args.threads)]
    batch = ["--max-batch", str(args.batch)]
    server = Server(args.model, "--backend", args.backend, *batch, *threads, *(f"--{option}" for option in args.serve))
    bodies = [form([path]) for path in paths[:BODIES]]
    print(f"| {args.model.name}, {os.cpu_count()} cores | | |\n|---|---:|---|")
    try:
        rate = throughput(server, args.model, paths, args) if "throughput" in selected else 0.0
        if not rate and selected & {"latency", "overload"}:
            rate = wrk(server, bodies, args.seconds)["rate"]
        if "latency" in selected:
            latency(server, bodies, rate, args.seconds)
        if "overload" in selected:
            overload(server, bodies, rate, args.seconds)
        if "soak" in selected and args.soak:
            soak(server, bodies, args.soak)
        if "malformed" in selected and args.malformed:
            malformed(server, bodies[0], args.malformed)
    finally:
        row("ended by SIGTERM with", str(server.end()))


if __name__ == "__main__":
    main()
