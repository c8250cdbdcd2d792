"""Whatever a file holds, it is read or refused with an error of the library; without atheris, and in a second."""

import os
import random

import pytest

from .fuzz_loaders import FOUND, SOUND, try_one

MUTATIONS = 60 * int(os.environ.get("CLIPADAPTER_ATTACKS", "1"))
TOKENS = [
    *(b"[" * 3000, b'{"a":' * 200, b"9" * 5000, b"1e999", b"-1", b"NaN", b"null", b"true", b"{}", b"[]", b'""'),
    *(rb'"\ud800"', rb'"\u0000"', b"\0", b"\xff", b'"', b"\n", b"\r\n", b"=1", b"../", b"9999999999999999999999"),
]


def mutated(data, rng):
    """Some bytes flipped, taken out, exchanged for what is hard to read, or given twice."""
    for _ in range(rng.randint(1, 3)):
        start = rng.randint(0, len(data))
        end = min(len(data), start + rng.choice((0, 1, 2, 5, 20)))
        new = rng.choice((b"", rng.randbytes(1), rng.choice(TOKENS), rng.choice(TOKENS), data[start:end] * 2))
        data = data[:start] + new + data[end:]
    return data


def changed_value(data, rng):
    """One value of a text exchanged: what stands between quotes, colons, commas and brackets."""
    ends = [i for i, byte in enumerate(data) if byte in b'":,[]{}\n=']
    start, end = sorted(rng.sample(ends, 2)) if len(ends) > 1 else (0, len(data))
    return data[: start + 1] + rng.choice(TOKENS) + data[end:]


@pytest.mark.parametrize("number", range(len(SOUND)))
def test_every_reader_gives_an_answer_or_an_error_of_the_library(tmp_path, number):
    rng = random.Random(number)
    inputs = [*SOUND[number][2], *FOUND.get(number, ())]
    for data in inputs:
        try_one(tmp_path, SOUND[number], data)
    for i in range(MUTATIONS):
        data = (mutated, changed_value)[i % 2](rng.choice(inputs), rng)
        try:
            try_one(tmp_path, SOUND[number], data)
        except Exception as error:
            raise AssertionError(data[:500]) from error
