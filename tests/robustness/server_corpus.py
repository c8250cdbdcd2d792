"""Requests that are odd on the wire, as bytes, for one connection each."""

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Odd:
    """What is sent on a connection, and whether more would have to come."""

    name: str
    data: bytes
    cut: bool = False
    """The client sends no more and closes its side."""


def post(path, headers, body, length=None):
    head = [f"POST {path} HTTP/1.1", "Host: localhost", *headers]
    if length != "":
        head.append(f"Content-Length: {len(body) if length is None else length}")
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def heads():
    """Request lines and headers."""
    get = b"GET /v2/health/live HTTP/1.1\r\n"
    named = {
        "nothing": b"\r\n\r\n",
        "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),
        "http2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "no version": b"GET /\r\n\r\n",
        "version 9": b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n",
        "no host": get + b"\r\n",
        "two hosts": get + b"Host: localhost\r\nHost: evil.example\r\n\r\n",
        "foreign host": get + b"Host: evil.example\r\n\r\n",
        "no colon": get + b"Host: localhost\r\nabc\r\n\r\n",
        "space before colon": get + b"Host: localhost\r\nA : b\r\n\r\n",
        "control in header": get + b"Host: localhost\r\nA: \x00\x01\r\n\r\n",
        "folded header": get + b"Host: localhost\r\nA: b\r\n  c\r\n\r\n",
        "line ends alone": b"GET /v1/models HTTP/1.1\nHost: localhost\n\n",
        "absolute address": b"GET http://evil.example/v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "asterisk": b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "connect": b"CONNECT evil.example:443 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "upgrade": get + b"Host: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        "path above": b"GET /../../../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "coded path above": b"GET /static-offline-docs/%2e%2e%2f%2e%2e%2fpasswd HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "not utf-8": b"GET /\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "long address": b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "long header": get + b"Host: localhost\r\nX: " + b"a" * 1_000_000 + b"\r\n\r\n",
        "many headers": get + b"Host: localhost\r\n" + b"a: b\r\n" * 50_000 + b"\r\n",
        "long method": b"A" * 100_000 + b" / HTTP/1.1\r\n\r\n",
    }
    return [Odd(f"head: {name}", data) for name, data in named.items()]


def lengths():
    """How long a body says it is, and is."""
    kind, body = ["Content-Type: application/json"], b'{"images":["AAAA"]}'
    chunked = [*kind, "Transfer-Encoding: chunked"]
    cases = {
        "negative": post("/v1/predict", kind, body, -1),
        "no number": post("/v1/predict", kind, body, "x"),
        "huge": post("/v1/predict", kind, body, 10**30),
        "with a sign": post("/v1/predict", kind, body, "+19"),
        "two": post("/v1/predict", [*kind, "Content-Length: 5"], body),
        "with chunks": post("/v1/predict", chunked, b"0\r\n\r\n"),
        "above the limit": post("/v1/predict", kind, b"", 1 << 40),
        "chunk without size": post("/v1/predict", chunked, b"zz\r\nabc\r\n", ""),
        "chunk of huge size": post("/v1/predict", chunked, b"f" * 30 + b"\r\nabc", ""),
        "chunk of negative size": post("/v1/predict", chunked, b"-5\r\nabc\r\n", ""),
        "chunk with a long extension": post("/v1/predict", chunked, b"1;" + b"a" * 100_000 + b"\r\na\r\n", ""),
        "tiny chunks": post("/v1/predict", chunked, b"1\r\na\r\n" * 20_000 + b"0\r\n\r\n", ""),
        "long trailer": post("/v1/predict", chunked, b"0\r\nX: " + b"a" * 100_000 + b"\r\n\r\n", ""),
        "unknown coding": post("/v1/predict", [*kind, "Transfer-Encoding: gzip"], body, ""),
        "packed": post("/v1/predict", [*kind, "Content-Encoding: gzip"], body),
    }
    cut = {
        "shorter than said": post("/v1/predict", kind, body, 1000),
        "cut in a chunk": post("/v1/predict", chunked, b"100\r\nabc", ""),
        "cut in the head": b"POST /v1/predict HTTP/1.1\r\nHost: loc",
        "cut before the body": post("/v1/predict", [*kind, "Expect: 100-continue"], b"", 100),
    }
    return [
        *(Odd(f"length: {name}", data) for name, data in cases.items()),
        *(Odd(f"length: {name}", data, cut=True) for name, data in cut.items()),
    ]


def mutated(count, seed=0):
    """A sound request with bytes changed, left out, doubled, or cut off."""
    rng = random.Random(seed)
    form = b'--x\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\nabc\r\n--x--\r\n'
    sound = [
        post("/v1/predict?timeout=2", ["Content-Type: application/json"], b'{"images":["AAAA"],"top":2}'),
        post("/v1/models/colours/predict", ["Content-Type: multipart/form-data; boundary=x"], form),
        b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: a\r\n\r\n",
    ]
    for number in range(count):
        data = bytearray(rng.choice(sound))
        for _ in range(rng.choice([1, 1, 2, 5])):
            at = rng.randrange(len(data))
            part = data[at : at + rng.choice([1, 4, 30])]
            data[at : at + rng.choice([0, 1, len(part)])] = rng.choice([bytes([rng.randrange(256)]), part * 2, b""])
        yield Odd(f"mutated {number}", bytes(data), cut=True)
