"""Files of a multipart body."""

import random

import pytest

from clipadapter.serve.multipart_body import Form

from .bombs import FORM_TYPE


@pytest.mark.parametrize("piece", [7, 64, 16 << 10])
def test_files_of_a_form_have_the_sent_content(monkeypatch, piece):
    """Contents that look like the boundary, cut anywhere."""
    monkeypatch.setattr("clipadapter.serve.multipart_body.PARSED_BYTES", piece)
    rng = random.Random(piece)
    for _ in range(60):
        contents = [
            b"".join(rng.choices([b"\r", b"\n", b"-", b"--", b"\r\n--", b"\r\n--x", b"x", b"\0", b"abc"], k=size))
            for size in rng.choices([0, 1, 2, 5, 40], k=3)
        ]
        boundary = b"xyz" + b"q" * rng.choice([0, 20])
        head = b'--%s\r\nContent-Disposition: form-data; name="images"; filename="%d"\r\n\r\n'
        body = b"".join(head % (boundary, i) + data + b"\r\n" for i, data in enumerate(contents))
        form = Form(FORM_TYPE + boundary.decode(), body + b"--" + boundary + b"--\r\n", 3)
        assert [(name, bytes(data)) for name, data in form.files] == [(str(i), data) for i, data in enumerate(contents)]
