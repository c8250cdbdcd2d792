"""Bodies that cost a parser far more memory or time than their size; for these tests and for tests/robustness."""

from dataclasses import dataclass

JSON_TYPE, FORM_TYPE = "application/json", "multipart/form-data; boundary="
HEAD = b'--x\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\n'


@dataclass(frozen=True)
class Bomb:
    """A request's body."""

    name: str
    path: str
    body: bytes
    content_type: str = JSON_TYPE


def bombs(size):
    """All, each of about as many bytes."""
    for name, body in {**_in_json(size), **_texts(size)}.items():
        yield Bomb(name, "/v1/predict", body)
    for name, body in _forms(size).items():
        yield Bomb(f"form-{name}", "/v1/predict", body, FORM_TYPE + "x")


def _in_json(size):
    return {
        "ints": b'{"images":[' + b"1," * (size // 2) + b"1]}",
        "dicts": b'{"images":[' + b"{}," * (size // 3) + b"{}]}",
        "strings": b'{"images":[' + b'"",' * (size // 3) + b'""]}',
        "keys": b'{"images":["a"],' + b",".join(b'"%x":1' % i for i in range(size // 11)) + b',"x":1}',
        "nested-lists": b'{"images":' + b"[" * size,
        "nested-objects": b'{"a":' * (size // 5),
        "spaces": b'{"images":' + b" " * size + b'["a"]}',
        "number": b'{"images":["a"],"top":' + b"9" * size + b"}",
    }


def _texts(size):
    texts = {
        "base64": b"A" * (size // 4 * 4),
        "wide": "\N{GRINNING FACE}".encode() + b"a" * size,
        "wide-escape": b"\\ud83d\\ude00" + b"a" * size,
        "escapes": b"\\u0041" * (size // 6),
        "quotes": b'\\"' * (size // 2),
        "backslashes": b"\\\\" * (size // 2),
    }
    bodies = {name: b'{"images":["' + text + b'"]}' for name, text in texts.items()}
    bodies["key"] = b'{"' + b"k" * size + b'":1,"images":["a"]}'
    bodies["no-end"] = b'{"images":["' + b"a" * size
    return bodies


def _forms(size):
    return {
        "files": (HEAD + b"\r\n") * (size // 72) + b"--x--\r\n",
        "fields": b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n' * (size // 54) + b"--x--\r\n",
        "crlf": HEAD + b"\r\n--" * (size // 4) + b"\r\n--x--\r\n",
        "cr": HEAD + b"\r" * size + b"\r\n--x--\r\n",
        "zeros": HEAD + b"\0" * size + b"\r\n--x--\r\n",
        "headers": b"--x\r\n" + b"A: b\r\n" * (size // 6) + b"\r\n--x--\r\n",
        "before": b"\r\n" * (size // 2),
        "after": HEAD + b"a\r\n--x--\r\n" + b"\r\n--x" * (size // 5),
        "no-end": HEAD + b"a" * size,
    }
