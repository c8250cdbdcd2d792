"""Malformed requests; benchmarks/service/serve_load.py sends more of them to a real server."""

import importlib.util
import sys
from collections import Counter
from pathlib import Path

PATH = Path(__file__).parents[2] / "benchmarks" / "service" / "_malformed.py"


def malformed(count):
    spec = importlib.util.spec_from_file_location("malformed", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules["malformed"] = module  # where dataclasses look for their annotations
    spec.loader.exec_module(module)
    return module.requests("colours", count)


def test_malformed_requests_are_refused_without_a_server_error(serve):
    client = serve(model=None)
    statuses = Counter()
    for wrong in malformed(500):
        headers = {name: value.encode("latin-1") for name, value in wrong.headers.items()}
        response = client.request(wrong.method, wrong.path, content=wrong.body, headers=headers, follow_redirects=False)
        statuses[response.status_code] += 1
        if response.status_code >= 400 and wrong.method != "HEAD":
            assert list(response.json()) == ["error"], wrong
    assert not [status for status in statuses if status >= 500], statuses
    assert set(statuses) >= {200, 400, 404, 405, 415, 422}
    assert client.app.state.server.buffered_bytes == 0 and client.app.state.server.models.get().batcher.pending == 0
