"""A hub in this process: the routes that huggingface_hub calls to make a repository, commit to it and read it."""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


class Hub:
    """Repositories by name; each commit is all its files.

    Args:
        large: ends of names that are sent apart from the commit, as the real hub has large files sent.
    """

    def __init__(self, large=(".safetensors", ".onnx")):
        self.large = large
        self.repos, self.private, self.stored, self.asked = {}, {}, {}, []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # else each answer waits 40 ms for the client's delayed ACK

            def do(self):
                hub.asked.append((self.command, unquote(self.path)))
                status, headers, body = hub.answer(self.command, self.path, self.body(), self.headers)
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def body(self):
                if "chunked" not in self.headers.get("Transfer-Encoding", ""):
                    return self.rfile.read(int(self.headers.get("Content-Length") or 0))
                parts = []
                while size := int(self.rfile.readline(), 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)

            do_GET = do_POST = do_PUT = do_HEAD = do

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def files(self, repo):
        """What the newest commit holds, by name."""
        return self.repos[repo][-1]

    def put(self, repo, name, data):
        """A commit that was not made by our client."""
        self.repos[repo].append({**self.files(repo), name: data})

    def fetched(self):
        """Names of the files that were asked for."""
        found = (re.search(r"/resolve/[^/]+/(.+)$", path) for verb, path in self.asked if verb == "GET")
        return {match[1] for match in found if match}

    def answer(self, verb, path, body, headers):
        path = unquote(urlsplit(path).path)
        if path == "/api/repos/create":
            return self.create(json.loads(body), headers)
        if path == "/api/validate-yaml":
            return self.json({"errors": [], "warnings": []})
        if match := re.fullmatch(r"/store/([0-9a-f]{64})", path):
            self.stored[match[1]] = body
            return 200, {}, b""
        if match := re.fullmatch(r"/(.+)\.git/info/lfs/objects/batch", path):
            return self.json({"objects": [self.upload(one) for one in json.loads(body)["objects"]]})
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree|preupload|commit)/([^/]+))?", path):
            return self.model(*match.groups(), body, headers)
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self.resolve(*match.groups())
        return 404, {}, b""

    def create(self, asked, headers):
        if headers.get("Authorization") != "Bearer secret":
            return 401, {}, b'{"error": "Invalid username or password."}'
        name = f"{asked['organization'] or 'ann'}/{asked['name']}"
        if name in self.repos:
            return self.json({"url": f"{self.url}/{name}"}, 409)
        self.repos[name] = [{".gitattributes": b"*.safetensors filter=lfs\n"}]
        self.private[name] = asked.get("visibility") == "private" or asked.get("private") is True
        return self.json({"url": f"{self.url}/{name}"})

    def model(self, repo, what, revision, body, headers):
        if repo not in self.repos or (self.private[repo] and headers.get("Authorization") != "Bearer secret"):
            return 401, {"X-Error-Code": "RepoNotFound"}, b"{}"
        commits = self.repos[repo]
        number = self.number(repo, revision or "main")
        if number is None:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        if what == "preupload":
            return self.json({"files": [self.mode(one["path"]) for one in json.loads(body)["files"]]})
        if what == "commit":
            commits.append(self.committed(dict(commits[-1]), [json.loads(line) for line in body.splitlines()]))
            sha = self.sha(len(commits) - 1)
            return self.json({"commitUrl": f"{self.url}/{repo}/commit/{sha}", "commitOid": sha})
        files = commits[number]
        if what == "tree":
            return self.json([self.entry(name, data) for name, data in files.items()])
        return self.json({"id": repo, "sha": self.sha(number), "siblings": [{"rfilename": name} for name in files]})

    def committed(self, files, lines):
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.stored[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        return files

    def resolve(self, repo, revision, name):
        number = self.number(repo, revision)
        data = self.repos[repo][number].get(name)
        told = {"X-Repo-Commit": self.sha(number)}
        if data is None:
            return 404, {**told, "X-Error-Code": "EntryNotFound"}, b""
        return 200, {**told, "ETag": f'"{self.oid(data)}"'}, data

    def upload(self, asked):
        action = {"upload": {"href": f"{self.url}/store/{asked['oid']}"}}
        return {**asked, **({} if asked["oid"] in self.stored else {"actions": action})}

    def mode(self, path):
        return {"path": path, "uploadMode": "lfs" if path.endswith(self.large) else "regular", "shouldIgnore": False}

    def entry(self, name, data):
        found = {"type": "file", "path": name, "size": len(data), "oid": self.oid(data)}
        if name.endswith(self.large):
            found["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
        return found

    def number(self, repo, revision):
        commits = self.repos[repo]
        known = {"main": len(commits) - 1, **{self.sha(i): i for i in range(len(commits))}}
        return known.get(revision)

    @staticmethod
    def sha(number):
        return f"{number + 1:040x}"

    @staticmethod
    def oid(data):
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    @staticmethod
    def json(value, status=200):
        return status, {"Content-Type": "application/json"}, json.dumps(value).encode()
