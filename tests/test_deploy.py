"""The container's file and what docs/serving.md shows: read by the tools that read such files, or run."""

import configparser
import json
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from PIL import Image
from tomlkit import parse

from clipadapter.cli.commands.serve import command as serve

from .runtime.conftest import NAMES, SIDE, graph

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
PAGE = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
LARGE = {"torch", "torchvision", "open-clip-torch", "transformers", "openvino", "gradio", "scikit-learn"}


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


SCRIPTS = {text.splitlines()[0].removeprefix("# "): text for text in blocks("python")}


def check_words(words):
    """The command line is one that `clipadapter serve` understands."""
    serve.make_context("serve", list(words))


def instructions():
    """Words of the Dockerfile's instructions, by name."""
    lines = re.sub(r"\\\n", "", re.sub(r"(?m)^#.*\n", "", DOCKERFILE)).splitlines()
    return [line.split(maxsplit=1) for line in lines if line.strip()]


def test_the_linter_finds_nothing_in_the_dockerfile():
    tool = shutil.which("hadolint") or Path(sysconfig.get_path("scripts")) / "hadolint"
    if not Path(tool).is_file():
        pytest.skip("hadolint is not installed")
    done = subprocess.run([tool, "--failure-threshold", "style", ROOT / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_what_the_image_is_made_of_exists_and_is_let_in():
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    let_in = {line.removeprefix("!") for line in lines if line.startswith("!")}
    assert "*" in lines
    copied = [rest.split() for name, rest in instructions() if name == "COPY" and "--from" not in rest]
    sources = {Path(word).as_posix() for words in copied for word in words[:-1]}
    assert sources == let_in
    assert all((ROOT / source).exists() for source in sources)
    project = parse((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {project["readme"], *project["license-files"], "pyproject.toml", "src"} <= sources


def test_the_image_is_not_root_and_has_no_secret():
    found = dict(instructions())
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", found["USER"])
    assert {"XDG_CACHE_HOME=/tmp", "ORT_DISABLE_TELEMETRY=1"} <= set(found["ENV"].split())
    assert not re.search(r"token|password|secret", DOCKERFILE, re.IGNORECASE)
    stages = [rest for name, rest in instructions() if name == "FROM"]
    assert stages == ["python:3.12-slim AS build", "python:3.12-slim"]


def test_the_image_starts_a_server_and_asks_for_its_health():
    found = dict(instructions())
    assert json.loads(found["ENTRYPOINT"]) == ["clipadapter", "serve"]
    check_words(json.loads(found["CMD"]))
    probe = json.loads(found["HEALTHCHECK"].split("CMD")[1])
    assert probe[:2] == ["python", "-c"] and ":8000/v2/health/ready'" in probe[2]
    compile(probe[2], "HEALTHCHECK", "exec")
    assert found["EXPOSE"] == "8000"


def test_the_extra_of_the_image_brings_no_torch():
    project = parse((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (extra,) = re.findall(r"'\.\[(\w+)\]'", DOCKERFILE)
    names, waiting = set(), [*project["dependencies"], f"clipadapter[{extra}]"]
    while waiting:
        name, extras = re.match(r"([\w.-]+)(?:\[([\w,]+)\])?", waiting.pop()).groups()
        if name == "clipadapter":
            waiting += [line for one in extras.split(",") for line in project["optional-dependencies"][one]]
        names.add(name.lower().replace("_", "-"))
    assert {"onnxruntime", "fastapi", "numpy"} <= names
    assert not names & LARGE


def test_the_unit_is_hardened_and_its_command_is_understood():
    (text,) = blocks("ini")
    found = configparser.ConfigParser(strict=False, interpolation=None)
    found.optionxform = str
    found.read_string(text)
    service = found["Service"]
    assert (service["DynamicUser"], service["ProtectSystem"], service["NoNewPrivileges"]) == ("yes", "strict", "yes")
    assert "ORT_DISABLE_TELEMETRY=1" in service["Environment"].split()
    program, verb, *words = shlex.split(service["ExecStart"])
    assert (program, verb) == ("/opt/clipadapter/bin/clipadapter", "serve")
    check_words(words)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_finds_nothing_in_the_unit_and_calls_it_safe(tmp_path):
    (text,), unit = blocks("ini"), tmp_path / "clipadapter.service"
    unit.write_text(text.replace("/opt/clipadapter/bin/clipadapter", shutil.which("true")))  # a program that is there
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    security = ["systemd-analyze", "security", "--offline=yes", "--no-pager", unit]
    told = subprocess.run(security, capture_output=True, text=True).stdout
    assert float(re.search(r"exposure level for \S+: ([\d.]+)", told)[1]) < 2


def test_the_yaml_is_a_runtime_and_a_service_of_it():
    runtime, service = [document for text in blocks("yaml") for document in yaml.safe_load_all(text)]
    assert (runtime["kind"], service["kind"]) == ("ServingRuntime", "InferenceService")
    assert service["spec"]["predictor"]["model"]["modelFormat"]["name"] == "clipadapter"
    assert [one["name"] for one in runtime["spec"]["supportedModelFormats"]] == ["clipadapter"]
    (container,) = runtime["spec"]["containers"]
    check_words(container["args"])
    port = container["args"][container["args"].index("--port") + 1]
    assert {str(container[probe]["httpGet"]["port"]) for probe in ("readinessProbe", "livenessProbe")} == {port}
    assert container["securityContext"]["runAsNonRoot"] is True


def test_the_commands_of_the_page_are_ours():
    from clipadapter.cli.app import app

    known = app.list_commands(None)
    named = re.findall(r"(?:^|`|/)clipadapter ([a-z]+) ", PAGE, re.MULTILINE)
    assert {"export", "serve", "push"} <= set(named) <= set(known)


@pytest.fixture
def scripts(tmp_path, monkeypatch):
    """The page's scripts in the working folder, on an exported model that tells colours."""
    onnx = pytest.importorskip("onnx")
    from clipadapter.runtime import ExportMetadata
    from clipadapter.runtime.engines.formats import append_checksum
    from clipadapter.uncertainty import Uncertainty
    from clipadapter.utils.pixels import PixelSpec

    about = ExportMetadata(NAMES, (PixelSpec(SIDE, (0.5,) * 3, (0.5,) * 3),), Uncertainty())
    onnx.save(graph(about.to_json()), tmp_path / "model.onnx")
    append_checksum(tmp_path / "model.onnx")
    for name, text in SCRIPTS.items():
        (tmp_path / name).write_text(text.replace("/srv/clipadapter/model.onnx", str(tmp_path / "model.onnx")))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def picture(folder, colour):
    path = folder / f"{colour}.png"
    Image.new("RGB", (20, 20), colour).save(path)
    return path.read_bytes()


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_scripts_are_python(name):
    compile(SCRIPTS[name], name, "exec")


def test_the_shared_script_answers_and_a_bad_picture_costs_its_own_answer(scripts):
    import pictures

    found = pictures.Pictures("model.onnx").answers([picture(scripts, "red"), b"none", picture(scripts, "blue")])
    assert [one.get("label") for one in found] == ["red", None, "blue"]
    assert found[1] == {"error": "not an image"}
    json.dumps(found)
    sys.modules.pop("pictures")


@pytest.mark.slow
@pytest.mark.skipif(find_spec("grpc") is None or find_spec("ray") is None, reason="needs ray[serve]")
def test_ray_takes_the_script_for_an_application(scripts):
    code = "from deploy_ray import app; print(type(app).__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=scripts)
    assert done.stdout.strip().endswith("Application"), done.stderr
