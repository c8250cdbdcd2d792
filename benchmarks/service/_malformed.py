"""Requests that no server should fall over: what is sent is wrong in one way or several. Standard library alone."""

import base64
import json
import random
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

STRANGE = [
    None, True, False, 0, -1, 1, 2**63, 10**400, 1.5, -0.0, 1e308, "", "x", "\0", "\ud83d\ude00", "../../etc/passwd",
    "http://127.0.0.1:1/", "file:///etc/passwd", "data:image/png;base64,", "=" * 9, [], {}, [[]], [[[]]],
    {"a": {"b": []}}, [None], [1, "a"], "A" * 5000, ["A" * 50] * 50, list(range(300)),
]  # fmt: skip
NAMES = ["images", "top", "reject", "coverage", "x", "", "model", "\u2028"]
TYPES = [
    "application/json", "multipart/form-data; boundary=x", "multipart/form-data", "application/octet-stream",
    "text/plain", "image/png", "", "multipart/form-data; boundary=\"", "APPLICATION/JSON; charset=utf-16",
    "multipart/mixed; boundary=x",
]  # fmt: skip


@dataclass
class Wrong:
    """A request."""

    method: str
    path: str
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


def png(side: int = 3) -> bytes:
    """A small picture."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + b"\x80" * 3 * side for _ in range(side))
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def requests(model: str, count: int, seed: int = 0) -> Iterator[Wrong]:
    """As many wrong requests.

    Args:
        model: that is asked.
        count: how many.
        seed: of all that is drawn.
    """
    rng = random.Random(seed)
    makers = [_json_ask, _form, _garbage, _address]
    for _ in range(count):
        yield rng.choice(makers)(rng, model)


def _picture(rng: random.Random) -> bytes:
    data = bytearray(png())
    for _ in range(rng.choice([0, 0, 1, 3, 20])):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data[: rng.choice([len(data), rng.randrange(len(data))])])


def _value(rng: random.Random) -> object:
    kind = rng.random()
    if kind < 0.6:
        return rng.choice(STRANGE)
    if kind < 0.8:
        return [rng.choice(STRANGE) for _ in range(rng.randrange(4))]
    return base64.b64encode(_picture(rng)).decode()


def _cut(rng: random.Random, body: bytes) -> bytes:
    """As it is, or damaged."""
    kind = rng.random()
    if kind < 0.6 or not body:
        return body
    if kind < 0.8:
        return body[: rng.randrange(len(body))]
    at = rng.randrange(len(body))
    return body[:at] + bytes([rng.randrange(256)]) * rng.choice([1, 2, 50]) + body[at + 1 :]


def _predict(rng: random.Random, model: str) -> str:
    path = rng.choice(["/v1/predict", f"/v1/models/{model}/predict", f"/v1/models/{model}/predict"])
    return path + rng.choice(
        ["", "", "", "?timeout=x", "?timeout=-1", "?timeout=1e999", "?timeout=2", "?a=%00&timeout="]
    )


def _json_ask(rng: random.Random, model: str) -> Wrong:
    asked: dict[str, object] = {"images": [base64.b64encode(_picture(rng)).decode() for _ in range(rng.randrange(3))]}
    for _ in range(rng.randrange(3)):
        asked[rng.choice(NAMES)] = _value(rng)
    kind = "application/json" if rng.random() < 0.9 else rng.choice(TYPES)
    return Wrong("POST", _predict(rng, model), _cut(rng, json.dumps(asked).encode()), {"content-type": kind})


def _form(rng: random.Random, model: str) -> Wrong:
    parts = []
    for _ in range(rng.randrange(4)):
        name = rng.choice(
            ['name="images"', 'name="top"', 'name="reject"', "name=", "", 'name="\xe4\0"', 'name="a"; x="']
        )
        file = rng.choice(['; filename="a.png"', "; filename=", '; filename="../../x"', "; filename*=utf-8''%ff", ""])
        extra = rng.choice(["", "", "Content-Type: image/png\r\n", "A" * 9000 + ": b\r\n", "no colon\r\n", ": x\r\n"])
        head = f"--x\r\nContent-Disposition: form-data; {name}{file}\r\n{extra}\r\n".encode("latin-1")
        parts.append(
            head + rng.choice([_picture(rng), b"3", b"nan", b"", b"0.5", b"\r\n--x", rng.randbytes(99)]) + b"\r\n"
        )
    body = b"".join(parts) + rng.choice([b"--x--\r\n", b"--x--", b"--x", b""])
    kind = TYPES[1] if rng.random() < 0.9 else rng.choice(TYPES)
    return Wrong("POST", _predict(rng, model), _cut(rng, body), {"content-type": kind})


def _garbage(rng: random.Random, model: str) -> Wrong:
    path = rng.choice([f"/v1/models/{model}/predict", "/v1/predict"])
    body = rng.choice(
        [rng.randbytes(rng.randrange(500)), b"[" * 20000, b'{"a":' * 5000, b"\xff\xfe{\0}\0", b"null", b"1e99999"]
    )
    headers = {"content-type": rng.choice(TYPES)}
    if rng.random() < 0.2:
        headers["content-encoding"] = rng.choice(["gzip", "br", "identity", "x"])
    return Wrong("POST", path, body, headers)


def _address(rng: random.Random, model: str) -> Wrong:
    method = rng.choice(["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE", "BREW"])
    part = rng.choice([model, "x", "%00", "%2e%2e", "..%2f..%2fetc", "%ff", "a" * 2000, "%F0%9F%98%80", ""])
    path = rng.choice(
        [
            f"/v1/models/{part}", f"/v1/models/{part}/predict", f"/{part}", f"//{part}",
            "/v2", "/v2/health/live", "/v2/health/ready", "/metrics", "/docs", "/openapi.json", "/",
            f"/static-offline-docs/{part}",
        ]
    )  # fmt: skip
    headers = {
        rng.choice(["x-request-id", "authorization", "cookie", "accept", "range"]): rng.choice(
            ["", "x", "a" * 3000, "\xe4"]
        )
    }
    return Wrong(method, path, b"" if rng.random() < 0.7 else rng.randbytes(20), headers)
