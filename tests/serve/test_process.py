"""The command as a separate process: signals, overload, a replaced file, and no torch."""

import _socket
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from clipadapter.errors import TRAIN

from .colours import BLUE, RED, base64_of, picture, write_file

CODE = f"""
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {sorted(TRAIN - {"pydantic"})}:
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Blocked())
from clipadapter.cli.app import main
main()
"""


class Running:
    """A server in another process; its log is read as it comes."""

    def __init__(self, *args, **environment):
        # Tests in the background of a shell ignore Ctrl-C, and the process would inherit that.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        self.process = subprocess.Popen(
            [sys.executable, "-c", CODE, "serve", *map(str, args), "--port", "0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        signal.signal(signal.SIGINT, before)
        self.log = []
        threading.Thread(target=self._read, daemon=True).start()
        self.port = int(self.wait_for("listening")["url"].rpartition(":")[2])

    def _read(self):
        for line in self.process.stderr:
            self.log.append(line)

    def wait_for(self, event, seconds=120):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for line in self.log:
                if f'"event": "{event}"' in line:
                    return json.loads(line)
            assert self.process.poll() is None, "".join(self.log)
            time.sleep(0.01)
        raise AssertionError("".join(self.log))

    def connection(self):
        """To this machine only, past the seal on all connections."""
        found = http.client.HTTPConnection("127.0.0.1", self.port)
        found.sock = socket.socket()
        found.sock.settimeout(120)
        _socket.socket.connect(found.sock, ("127.0.0.1", self.port))
        return found

    def ask(self, method, path, body=None, **headers):
        connection = self.connection()
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return response.status, json.loads(response.read()), dict(response.getheaders())
        finally:
            connection.close()

    def predict(self, *pictures):
        body = json.dumps({"images": [base64_of(one) for one in pictures]})
        return self.ask("POST", "/v1/predict", body, **{"content-type": "application/json"})

    def end(self, sig=signal.SIGTERM):
        if self.process.poll() is None:
            self.process.send_signal(sig)
        return self.process.wait(120)

    def close(self):
        self.process.kill()
        self.process.wait()
        self.process.stderr.close()
        self.process.stdout.close()


@pytest.fixture
def running():
    """A function that starts the command on a file."""
    started = []

    def start(*args, **environment):
        started.append(Running(*args, **environment))
        return started[-1]

    yield start
    for one in started:
        one.close()


def test_an_exported_file_is_served_and_replaced_without_torch(running, files):
    server = running(files / "colours.onnx", "--json")
    status, answer, _ = server.predict(RED, BLUE)
    assert status == 200 and [one["label"] for one in answer["predictions"]] == ["red", "blue"]
    assert shortest_answer(server) < 0.03
    write_file(files / "colours.onnx", ("cherry", "leaf", "sky"))
    end = time.monotonic() + 20
    while (found := server.predict(RED)[1]["predictions"][0]["label"]) != "cherry":
        assert found == "red" and time.monotonic() < end
        time.sleep(0.05)
    assert server.end() == 0
    assert all(isinstance(json.loads(line), dict) for line in server.log), server.log
    address = {"url": f"http://127.0.0.1:{server.port}", "models": ["colours"]}
    assert json.loads(server.process.stdout.read()) == address


def shortest_answer(server):
    """Seconds. Head and body of an answer are two packets: waiting until the first is confirmed would take 40 ms."""
    connection, times = server.connection(), []
    for _ in range(20):
        began = time.perf_counter()
        connection.request("GET", "/v1/models")
        assert len(connection.getresponse().read()) > 100
        times.append(time.perf_counter() - began)
    connection.close()
    return min(times)


def test_a_begun_request_and_one_more_on_an_idle_connection_are_answered_after_sigterm(running, files):
    server = running(files / "colours.onnx", "--deadline", 120)
    idle = server.connection()
    idle.request("GET", "/v1/models")
    assert idle.getresponse().read()
    body = json.dumps({"images": [base64_of(picture((255, 0, 0), 500))] * 30}).encode()
    connection = server.connection()
    connection.putrequest("POST", "/v1/predict")
    connection.putheader("content-type", "application/json")
    connection.putheader("content-length", str(len(body)))
    connection.putheader("expect", "100-continue")
    connection.endheaders()
    assert connection.sock.recv(1024).startswith(b"HTTP/1.1 100")  # the server waits for the body
    connection.send(body[:1000])
    server.process.send_signal(signal.SIGTERM)
    server.wait_for("stopping")
    idle.request("GET", "/v1/models")
    response = idle.getresponse()
    assert response.status == 200 and response.getheader("connection") == "close"
    idle.close()
    connection.send(body[1000:])
    response = connection.getresponse()
    assert response.status == 200 and len(json.loads(response.read())["predictions"]) == 30
    connection.close()
    assert server.process.wait(120) == 0
    assert json.loads(server.log[-1])["event"] == "stopped"


def test_in_the_grace_the_server_answers_but_is_not_ready_and_a_token_of_a_file_comes_before_others(
    running, files, tmp_path
):
    (tmp_path / "token").write_text("from-file\n")
    options = ("--grace", "20", "--token-file", tmp_path / "token")
    server = running(files, *options, CLIPADAPTER_TOKEN="from-env")  # test_page.py has a token of the environment
    for token, status in (("from-env", 401), ("from-file", 200)):
        assert server.ask("GET", "/v1/models", authorization=f"Bearer {token}")[0] == status
    assert server.ask("GET", "/v2/health/ready")[0] == 200
    server.process.send_signal(signal.SIGTERM)
    server.wait_for("stopping")
    assert server.ask("GET", "/v2/health/ready")[0] == 503
    assert server.ask("GET", "/v1/models", authorization="Bearer from-file")[0] == 200
    server.process.send_signal(signal.SIGINT)  # in a hurry
    assert server.process.wait(120) == 0
    assert "from-" not in "".join(server.log)
