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
    json_bytes: int | None = None


def bombs(model, size):
    """All, each of about as many bytes."""
    infer = f"/v2/models/{model}/infer"
    for name, body in {**_in_json(size), **_texts(size)}.items():
        yield Bomb(name, "/v1/predict", body)
    for name, body in _tensors(size).items():
        yield Bomb(f"v2-{name}", infer, body)
    head = b'{"inputs":[{"name":"images","shape":[1],"datatype":"BYTES","parameters":{"binary_data_size":%d}}]}' % size
    yield Bomb("v2-bytes", infer, head + (size - 4).to_bytes(4, "little") + b"x" * (size - 4), json_bytes=len(head))
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


def _tensors(size):
    def images(data):
        return b'{"inputs":[{"name":"images","shape":[1],"datatype":"BYTES","data":' + data + b"}]}"

    def squares(data):
        return b'{"inputs":[{"name":"squares","shape":[64,4,4,3],"datatype":"UINT8","data":' + data + b"}]}"

    return {
        "lists": images(b"[" + b"[]," * (size // 3) + b"[]]"),
        "objects": images(b"[" + b'{"a":{}},' * (size // 9) + b"{}]"),
        "base64": images(b'["' + b"A" * (size // 4 * 4) + b'"]'),
        "ints": squares(b"[" + b"1," * (size // 2) + b"1]"),
        "nested": squares(b"[" + b"[1,2,3]," * (size // 8) + b"[1,2,3]]"),
        "deep": squares(b"[" * size),
        "deep-closed": squares(b"[" * (size // 2) + b"]" * (size // 2)),
        "blank": squares(b"[1" + b" " * size + b"," + b",".join([b"1"] * 3071) + b"]"),
        "commas": squares(b"[" + b"," * 3071 + b"9" * size + b"]"),
        "two-lists": squares(b'[1],"data":[' + b"1," * (size // 2) + b"1]"),
        "shape": b'{"inputs":[{"name":"images","shape":[' + b"9" * size + b'],"datatype":"BYTES","data":["a"]}]}',
        "outputs": images(b'["a"]')[:-1] + b',"outputs":[' + b'{"name":"x"},' * (size // 13) + b'{"name":"y"}]}',
        "filler": images(b'["a"]')[:-1] + b',"parameters":{"x":"' + b"x" * size + b'"}}',
    }


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
