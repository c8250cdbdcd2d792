"""`clipadapter serve` under load, on this machine: its share of the offline rate, latency, overload, memory, nonsense.

Clients and server share the cores. The rate under load comes from wrk (package wrk) in turns with the offline rate of
the same file on the same pictures; where other programs use the machine, trust the share by seconds of CPU rather than
the one by the clock. Latency comes from an open loop: requests leave when they are due, answered or not.

    python benchmarks/service/serve_load.py model.onnx PICTURES
    python benchmarks/service/serve_load.py model.onnx PICTURES --rounds 1 --seconds 3       # to try it
    python benchmarks/service/serve_load.py model.onnx PICTURES --only soak --soak 10
    python benchmarks/service/serve_load.py model.onnx PICTURES --only malformed --malformed 10000
"""

import argparse
import asyncio
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from _malformed import Wrong, requests

from clipadapter.data import IMAGE_SUFFIXES
from clipadapter.runtime import Predictor

PARTS = ("throughput", "latency", "overload", "soak", "malformed")
BODIES = 64
"""Different requests that go round."""
CONNECTIONS = 16


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
                self.port = int(event["url"].rpartition(":")[2])
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

    def end(self) -> int:
        self.process.terminate()
        return self.process.wait(60)


def form(paths: list[Path]) -> bytes:
    """Pictures as the body of a form."""
    parts = []
    for path in paths:
        head = f'--edge-of-parts\r\nContent-Disposition: form-data; name="images"; filename="{path.name}"\r\n\r\n'
        parts.append(head.encode() + path.read_bytes() + b"\r\n")
    return b"".join(parts) + b"--edge-of-parts--\r\n"


FORM = "multipart/form-data; boundary=edge-of-parts"
SCRIPT = """
local bodies, at = {}, 0
init = function(args)
  for name in io.popen('ls "%s"'):lines() do
    local file = io.open("%s/" .. name, "rb")
    bodies[#bodies + 1] = wrk.format("POST", "/v1/predict", {["Content-Type"] = "%s"}, file:read("*a"))
    file:close()
  end
end
request = function() at = at %% #bodies + 1; return bodies[at] end
"""


def wrk(server: Server, bodies: list[bytes], seconds: float, connections: int) -> float:
    """Requests a second by wrk.

    Raises:
        SystemExit: if one was not answered well.
    """
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "bodies")
        place.mkdir()
        for i, body in enumerate(bodies):
            (place / f"{i:05}").write_bytes(body)
        script = Path(folder, "wrk.lua")
        script.write_text(SCRIPT % (place, place, FORM))
        command = [
            "wrk",
            "-t1",
            f"-c{connections}",
            f"-d{max(1, round(seconds))}s",
            "--timeout",
            "30s",
            "-s",
            str(script),
        ]
        output = subprocess.run(
            [*command, f"http://127.0.0.1:{server.port}"], capture_output=True, text=True, check=True
        ).stdout
    if "Non-2xx" in output or "Socket errors" in output:
        raise SystemExit(f"not all was answered:\n{output}")
    return float(re.findall(r"Requests/sec:\s+([\d.]+)", output)[0])


class Client:
    """Connections that are kept, for requests as bytes."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def post(self, body: bytes, kind: str = FORM, path: str = "/v1/predict") -> tuple[int, dict[str, str], float]:
        """Status, headers and seconds."""
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
        began = time.perf_counter()
        if self.free:
            reader, writer = self.free.pop()
        else:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(head.encode() + body)
        await writer.drain()
        status, headers, _ = await answer_of(reader)
        self.free.append((reader, writer))
        return status, headers, time.perf_counter() - began

    def close(self) -> None:
        for _, writer in self.free:
            writer.close()


async def answer_of(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of an answer."""
    text = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *rest = text.split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in rest if line)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return int(first.split()[1]), headers, body


async def open_loop(
    client: Client, bodies: list[bytes], rate: float, seconds: float
) -> list[tuple[int, dict[str, str], float]]:
    """Requests that leave when they are due; their time counts from then."""
    began, waiting = time.perf_counter(), []
    for i in range(max(1, round(rate * seconds))):
        due = began + i / rate
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        late = time.perf_counter() - due
        waiting.append((late, asyncio.create_task(client.post(bodies[i % len(bodies)]))))
    return [(status, headers, late + took) for late, task in waiting for status, headers, took in [await task]]


def quantile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def throughput(server: Server, model: Path, paths: list[Path], args: argparse.Namespace) -> float:
    """The two rates in turns; gives requests a second of one picture each."""
    predictor = Predictor(model, backend=args.backend, threads=args.threads)
    bodies = {k: [form([paths[(i * k + j) % len(paths)] for j in range(k)]) for i in range(BODIES)] for k in args.sizes}
    rates: dict[int, list[tuple[float, float]]] = {k: [] for k in args.sizes}
    offline = []
    for k in args.sizes:
        wrk(server, bodies[k], 1, CONNECTIONS)  # to be warm
    for _ in range(args.rounds):
        clock, cpu, n = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() - clock < args.seconds:
            n += sum(1 for _ in predictor.iter_predictions(paths, batch_size=args.batch))
        offline.append((n / (time.perf_counter() - clock), 1e3 * (time.process_time() - cpu) / n))
        for k in args.sizes:
            cpu, before = server.cpu(), pictures_of(server)
            rate = wrk(server, bodies[k], args.seconds, CONNECTIONS) * k
            rates[k].append((rate, 1e3 * (server.cpu() - cpu) / max(1, pictures_of(server) - before)))
    total_rate, cpu_per_picture = (statistics.median(values) for values in zip(*offline, strict=True))
    row("offline, pictures a second", f"{total_rate:.1f}", f"{cpu_per_picture:.2f} ms of CPU a picture")
    for k in args.sizes:
        rate, cpu = (statistics.median(values) for values in zip(*rates[k], strict=True))
        share = statistics.median(a[0] / b[0] for a, b in zip(rates[k], offline, strict=True))
        note = f"{100 * share:.0f} % of offline; {cpu:.2f} ms of CPU a picture ({100 * cpu_per_picture / cpu:.0f} %)"
        row(f"served, {k} a request, {CONNECTIONS} connections", f"{rate:.1f}", note)
    return statistics.median(rate for rate, _ in rates[min(rates)]) / min(rates)


def pictures_of(server: Server) -> int:
    """How many pictures it has seen."""
    text = fetch(server, "/metrics")
    return round(
        sum(float(value) for value in re.findall(r"^clipadapter_pictures_total\S* (\S+)$", text, re.MULTILINE))
    )


def fetch(server: Server, path: str) -> str:
    async def get() -> str:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        _, _, body = await answer_of(reader)
        writer.close()
        return body.decode()

    return asyncio.run(get())


async def latency(server: Server, bodies: list[bytes], rate: float, seconds: float) -> None:
    client = Client(server.port)
    await open_loop(client, bodies, rate / 2, 2)
    responses = await open_loop(client, bodies, rate / 2, max(seconds, 5))
    client.close()
    times = [1e3 * took for status, _, took in responses if status == 200]
    if len(times) < len(responses):
        row("at half load, not answered", str(len(responses) - len(times)), f"of {len(responses)}")
    middle, last = quantile(times, 0.5), quantile(times, 0.99)
    row(f"at half load ({rate / 2:.0f} requests a second), ms", f"{middle:.0f}", f"p99 {last:.0f}, of {len(times)}")


async def overload(server: Server, bodies: list[bytes], rate: float, seconds: float) -> None:
    """Three times what it can do, then one request after another until it is as it was."""
    client = Client(server.port)
    before = statistics.median([(await client.post(bodies[0]))[2] for _ in range(10)])
    responses = await open_loop(client, bodies, 3 * rate, seconds)
    began = time.perf_counter()
    while True:
        status, _, took = await client.post(bodies[0])
        if status == 200 and took < 3 * before:
            break
        await asyncio.sleep(0.02)
    recovery = time.perf_counter() - began
    client.close()
    counts = Counter(status for status, _, _ in responses)
    n_with_retry_after = sum("retry-after" in headers for status, headers, _ in responses if status == 503)
    times = [1e3 * took for status, _, took in responses if status == 200]
    row(
        "three times the load, by status",
        str(dict(sorted(counts.items()))),
        f"Retry-After on {n_with_retry_after} of {counts[503]}",
    )
    row("the good ones, ms", f"{quantile(times, 0.5):.0f}", f"p99 {quantile(times, 0.99):.0f}")
    row("recovered, seconds after the last request", f"{recovery:.2f}", f"one picture in {1e3 * before:.0f} ms before")


def soak(server: Server, bodies: list[bytes], minutes: float) -> None:
    samples: list[tuple[float, float]] = []
    over = threading.Event()

    def sample() -> None:
        began = time.perf_counter()
        while not over.wait(1):
            samples.append((time.perf_counter() - began, server.memory()))

    thread = threading.Thread(target=sample)
    thread.start()
    rate = wrk(server, bodies, 60 * minutes, CONNECTIONS)
    over.set()
    thread.join()
    steady = samples[len(samples) // 5 :]  # the first fifth warms up
    slope = statistics.linear_regression(*zip(*steady, strict=True)).slope * 60
    first, last = (
        statistics.median(m for _, m in part) for part in (steady[: len(steady) // 5 + 1], steady[-len(steady) // 5 :])
    )
    row(
        f"soak of {minutes:g} minutes, MiB at its first and last fifth",
        f"{first:.0f} -> {last:.0f}",
        f"{slope:+.2f} a minute",
    )
    row("requests a second meanwhile", f"{rate:.1f}", f"most {max(m for _, m in samples):.0f} MiB")


async def malformed(server: Server, count: int) -> None:
    """Wrong requests by 8 clients at once; some more are no HTTP at all."""
    statuses: Counter[int | str] = Counter()
    left = iter(requests("m", count))

    async def send() -> None:
        for wrong in left:
            statuses[await one(server.port, wrong)] += 1

    await asyncio.gather(*(send() for _ in range(8)))
    for raw in (
        b"\0" * 99,
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\n\r\n",
    ):
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(raw)
        await writer.drain()
        writer.close()
    summary = ", ".join(f"{status}: {n}" for status, n in sorted(statuses.items(), key=str))
    row(f"{sum(statuses.values())} malformed requests, with status 500", str(statuses[500]), summary)
    good = await Client(server.port).post(b'{"images": [""]}', "application/json")
    row("answers still", str(good[0]), f"lines in its log: {dict(server.events)}")
    if statuses[500] or good[0] != 200:
        raise SystemExit("a request broke the server")


async def one(port: int, wrong: Wrong) -> int | str:
    """What a wrong request gets."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    headers = {"Host": "localhost", "Connection": "close", "Content-Length": str(len(wrong.body)), **wrong.headers}
    lines = [f"{wrong.method} {wrong.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    try:
        writer.write("\r\n".join(lines).encode("latin-1") + wrong.body)
        await writer.drain()
        first = (await asyncio.wait_for(reader.readline(), 30)).split()
        return int(first[1]) if len(first) > 1 else "closed"
    except (ConnectionError, asyncio.TimeoutError) as error:
        return type(error).__name__
    finally:
        writer.close()


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
        rate = throughput(server, args.model, paths, args) if "throughput" in selected else None
        if rate is None and selected & {"latency", "overload"}:
            rate = wrk(server, bodies, args.seconds, CONNECTIONS)
        if "latency" in selected:
            asyncio.run(latency(server, bodies, rate or 1, args.seconds))
        if "overload" in selected:
            asyncio.run(overload(server, bodies, rate or 1, args.seconds))
        if "soak" in selected and args.soak:
            soak(server, bodies, args.soak)
        if "malformed" in selected and args.malformed:
            asyncio.run(malformed(server, args.malformed))
    finally:
        row("ended by SIGTERM with", str(server.end()))


if __name__ == "__main__":
    main()
