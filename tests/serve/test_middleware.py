"""Token, Host, ids, errors, log and metrics of every request."""

import json
import logging
import re

import pytest

from clipadapter.serve.logs import JsonFormatter

from .colours import RED, ask, refused


def test_requests_without_the_token_are_refused(serve):
    client = serve(token="secret-1")
    guarded = ["/v1/models", "/metrics"]
    for path in [*guarded, "/nothing", "/docs/", "/v2/health/live/x"]:
        response = client.get(path, follow_redirects=False)
        assert refused(response, 401, "Authorization: Bearer"), path
        assert response.headers["www-authenticate"] == "Bearer"
    for given in ("Bearer secret-2", "Bearer ", "secret-1", "Basic secret-1", "Bearer secret-1x", "Bearer ä"):
        headers = {"authorization": given.encode("latin-1")}
        assert refused(client.post("/v1/predict", headers=headers), 401), given
    for given in ("Bearer secret-1", "bearer secret-1"):
        for path in guarded:
            assert client.get(path, headers={"authorization": given}).status_code == 200
    for path in ("/v2/health/live", "/v2/health/ready", "/docs", "/openapi.json", "/"):
        assert client.get(path).status_code == 200, path


def test_a_stopping_server_is_live_but_not_ready_and_each_answer_closes_its_connection(serve):
    client = serve()
    assert client.get("/v2/health/live").json() == {"live": True}
    response = client.get("/v2/health/ready")
    assert response.json() == {"live": True, "ready": True} and "connection" not in response.headers
    client.app.state.server.is_stopping = True
    response = client.get("/v2/health/ready")
    assert response.status_code == 503 and response.json() == {"live": True, "ready": False}
    assert client.get("/v2/health/live").status_code == 200
    for path in ("/v1/models", "/v2/health/ready", "/nothing"):
        assert client.get(path).headers["connection"] == "close"


def test_a_body_is_not_read_without_the_token(serve):
    client = serve(token="secret-1")
    assert refused(client.post("/v1/predict", content=b"x" * (40 << 20)), 401)
    assert client.app.state.server.buffered_bytes == 0


@pytest.mark.parametrize("path", ["/v1/models", "/v2/health/live", "/docs"])
def test_hosts_that_name_this_machine_are_answered_and_other_names_that_lead_here_are_not(serve, path):
    client = serve()
    client.app.state.server.allowed_hosts = frozenset({"pets.org"})
    own = ("localhost", "LOCALHOST:8000", "127.0.0.1", "127.0.0.1:8000", "[::1]:80", "10.0.0.7", "a.localhost")
    for host in (*own, "pets.org:1"):
        assert client.get(path, headers={"host": host}).status_code == 200, host
    for host in ("evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.nip.io", "xpets.org"):
        assert refused(client.get(path, headers={"host": host}), 421, "--allow-host"), host
    client.app.state.server.allowed_hosts = None
    assert client.get(path, headers={"host": "evil.example"}).status_code == 200


def test_errors_have_one_shape(client):
    assert refused(client.get("/nothing"), 404, "/docs")
    response = client.get("/v1/predict")
    assert refused(response, 405) and response.headers["allow"] == "POST"
    assert refused(client.delete("/v1/models"), 405)


def test_requests_have_ids(client):
    assert client.get("/v1/models", headers={"x-request-id": "abc-1.Z_"}).headers["x-request-id"] == "abc-1.Z_"
    given = []
    for strange in ("", "a b", "x" * 65, '{"a"}'):
        given.append(client.get("/v1/models", headers={"x-request-id": strange}).headers["x-request-id"])
        assert re.fullmatch("[0-9a-f]{16}-[0-9a-f]+", given[-1])
    assert len(set(given)) == len(given)


def lines(caplog):
    own = (record for record in caplog.records if record.name.startswith("clipadapter.serve"))
    return [json.loads(JsonFormatter().format(record)) for record in own]


def test_the_log_has_no_content_of_requests(serve, caplog):
    client = serve()
    caplog.clear()  # an earlier test may have left the log of the server as talkative as the command sets it
    with caplog.at_level(logging.INFO, "clipadapter.serve"):
        files = [("images", ("my-secret-name.png", RED)), ("images", ("x.png", b"private"))]
        client.post("/v1/predict?timeout=3", files=files, headers={"x-request-id": "r1"})
        ask(client, RED, path="/v1/models/other-secret/predict")
        client.get("/secret-address?secret=1")
        client.get("/v2/health/live")
    first, second, third = lines(caplog)
    milliseconds = first.pop("ms")
    assert 0 <= milliseconds < 60_000
    assert first.pop("bytes") > len(RED) and first.pop("time").endswith("Z")
    facts = {"id": "r1", "method": "POST", "route": "/v1/predict", "status": 200}
    assert first == {"level": "info", "event": "request", **facts, "model": "colours", "pictures": 2, "bad": 1}
    assert (second["route"], second["status"]) == ("/v1/models/{name}/predict", 404)
    assert (third["route"], third["status"]) == ("unknown", 404)
    assert not re.search("secret|private|x.png", json.dumps([first, second, third]))


def test_a_server_error_is_logged_and_not_sent_to_the_client(serve, caplog, colours):
    client = serve(raise_server_exceptions=False)
    colours.run = lambda squares: 1 / 0
    assert refused(ask(client, RED), 500)
    assert any("ZeroDivisionError" in line.get("traceback", "") for line in lines(caplog))


def test_requests_and_pictures_are_counted(serve):
    client = serve()
    ask(client, RED, b"bad")
    client.post("/v1/predict", json={})
    client.get("/anything/at/all")
    text = client.get("/metrics").text
    for line in (
        'clipadapter_requests_total{model="colours",route="/v1/predict",status="200"} 1.0',
        'clipadapter_requests_total{model="colours",route="/v1/predict",status="422"} 1.0',
        'clipadapter_requests_total{model="",route="unknown",status="404"} 1.0',
        'clipadapter_pictures_total{model="colours"} 2.0',
        'clipadapter_picture_errors_total{model="colours"} 1.0',
        'clipadapter_batch_pictures_count{model="colours"} 1.0',
        'clipadapter_queue_pictures{model="colours"} 0.0',
        'clipadapter_request_seconds_count{model="colours",route="/v1/predict"} 2.0',
    ):
        assert line in text, line
    assert client.get("/metrics").headers["content-type"].startswith("text/plain; version=0.0.4")


def test_the_first_page_is_for_trying_a_picture_and_needs_no_other_host(client):
    response = client.get("/")
    assert response.headers["content-type"].startswith("text/html") and "Drop pictures here" in response.text
    assert "default-src 'none'" in response.headers["content-security-policy"]
    named = re.findall(r"(?:src|href|url)\s*[=:(]\s*[\"']?([^\"'\s)]+)", response.text)
    assert named == ["docs", "URL.createObjectURL(file"]


def test_the_documentation_page_needs_no_other_host(client):
    page = client.get("/docs").text
    named = re.findall(r"(?:src|href|url)\s*[=:]\s*[\"']([^\"']+)", page)
    assert len(named) >= 4 and all(one.startswith("/") for one in named)
    for path in named:
        assert client.get(path).status_code == 200, path
    assert client.get("/redoc").status_code == 404


@pytest.mark.parametrize("token", [None, "secret-1"])
def test_the_document_says_whether_a_token_is_needed(serve, token):
    document = serve(token=token).get("/openapi.json").json()
    asked = document["paths"]["/v1/predict"]["post"].get("security")
    assert asked == (None if token is None else [{"token": []}])
    assert "security" not in document["paths"]["/v2/health/live"]["get"]
