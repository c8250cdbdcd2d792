"""One folder of each kind that belongs to the program, and the commands that open it, for `link_trees.py`.

Commands run in this process, from a folder in which a tree, the model and the pictures have short names. No server
starts: what `serve` and `studio` do before is done.
"""

import logging
import os
import random
import shutil
from contextlib import suppress

import gradio
import numpy as np
import pyarrow.fs
from bench_faults import SUITE, pictures
from click.testing import CliRunner
from studio_faults import act

import clipadapter.serve
from clipadapter.cli.app import app
from clipadapter.cli.commands import predict
from clipadapter.encoders import create_encoder
from clipadapter.errors import ClipAdapterError
from clipadapter.features import FeatureRow, ray_extract
from clipadapter.studio import Project

HEX = "0a" * 16
OWN_FOLDERS = {
    "studio": "p/.studio",
    "model": "m",
    "parts": "a.csv.parts",
    "bench": "out",
    "store": "s",
    "results": "r",
}
QUICK = "--encoder toy --head prototype -q"
COMMANDS = {
    "studio": f"""
        studio p --encoder toy --head prototype --no-browser
        studio p --encoder toy --head prototype --no-browser --unlabelled pictures/test
        scan p
        embed p --encoder toy
        fit p {QUICK} --out fitted""",
    "model": f"""
        history m
        undo m
        undo m --to 1
        predict m pictures/test/red/0.ppm
        predict m pictures/test --out answers.jsonl
        eval m
        eval m pictures --no-curve --record
        explain m pictures/test/red/0.ppm --out why.png
        report m pictures --out page.html
        monitor m stream --reference stream --by name
        correct m pictures/train/red/0.ppm --label green
        add-class m new pictures/test/red/0.ppm
        add-examples m pictures/test/red/0.ppm --label red
        rename-class m red crimson
        remove-class m green
        fit pictures/train {QUICK} --out m
        export m --out exported.onnx
        serve m""",
    "parts": """
        predict model pictures broken.png --out a.csv
        predict model pictures broken.png --out a.csv --strict""",
    "bench": """
        bench run own.toml --data pictures --encoder toy --out out --workers 1
        bench status --out out
        bench report own --out out
        bench compare out out --suite own
        compare pictures --encoder toy --heads prototype --shots 1 --seeds 1 --out out""",
    "store": f"""
        embed pictures --encoder toy --cache s/features.sqlite
        embed pictures --encoder toy --cache s/features.sqlite --to s/table.parquet
        fit pictures/train {QUICK} --cache s/features.sqlite --out fitted
        fit s/shards {QUICK} --out fitted
        predict model s/shards --out answers.csv""",
    "results": """
        compare pictures --encoder toy --heads prototype --shots 1 --seeds 1 --out r
        demo --data pictures --encoder toy --shots 1 --seeds 1 --out r
        eval model pictures --no-curve --out r
        export model --out r/exported.onnx
        monitor model stream --reference stream --by name --history r/log.jsonl
        embed pictures --encoder toy --to r/table.parquet
        serve r
        predict r/exported.onnx pictures/test
        predict model pictures/test --sort-into r/sorted""",
}
RNG = random.Random(1)


def open_page(page, *_, **__):
    """What a person does on the page of the studio, in place of its server."""
    session = page.session
    with suppress(ClipAdapterError):
        for _ in range(3):
            act(session.project, RNG)
        session.notify_change()
        session.wait_until_idle()
        session.save_model()
        session.export_model()
    raise KeyboardInterrupt


def run(line):
    """Run a command. Returns whether it did its work; an error that is not of the program is raised."""
    result = CliRunner().invoke(app, line.split())
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert "Traceback" not in result.output, result.output
    return result.exit_code in (0, 3)  # 3: monitor detected drift


def open_shards(base):
    """What extract_with_ray does, which no command calls."""
    folder, encoder = base / "s" / "shards", create_encoder("toy")
    local, feature = pyarrow.fs.LocalFileSystem(), np.ones(encoder.info.dim, np.float32)
    plan = ray_extract.make_plan("toy", encoder, [f"{HEX}.parquet"])
    ray_extract.write_plan(local, str(folder), plan)
    rows = [FeatureRow(name, name, "all", feature, digest=name.encode()) for name in ("red", "green")]
    ray_extract.write_shard(local, f"{folder}/{HEX}.parquet", rows, plan)
    ray_extract.remove_abandoned_parts(local, str(folder))


def prepare_commands(folder):
    """Make the pictures and the model that commands take, and replace servers."""
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    logging.raiseExceptions = False  # the log of a server has the stream of the command, which is closed
    gradio.Blocks.launch = open_page
    clipadapter.serve.run = lambda app, *_, **__: app.state.server.models.close()
    predict.PICTURES_PER_PART = 1
    pictures(folder / "pictures")
    (folder / "stream").mkdir()
    for i in range(24):  # so many the test for drift needs
        (folder / "stream" / f"{i}.ppm").write_bytes(b"P6 2 2 255\n" + bytes([i, 9, 9]) * 4)
    (folder / "broken.png").write_bytes(b"broken")
    (folder / "own.toml").write_text(SUITE)
    os.chdir(folder)
    assert run(f"fit pictures/train {QUICK} --out model")


def enter(folder, kind):
    """Make the place of a tree beside what commands take, and go there."""
    base = folder / f"tree-{kind}"
    base.mkdir()
    for name in ("pictures", "stream", "model", "broken.png", "own.toml"):
        (base / name).symlink_to(folder / name)
    os.chdir(base)
    return base


def make_templates(folder):
    """One sound folder of each kind, as the program leaves it, in ``templates``."""
    first = {kind: [line.strip() for line in lines.splitlines() if line] for kind, lines in COMMANDS.items()}
    first["model"] = [
        f"fit pictures/train {QUICK} --out m",
        "correct m pictures/train/red/0.ppm --label green",
        "undo m",
    ]
    first["parts"] = []
    for kind, own in OWN_FOLDERS.items():
        base = enter(folder, kind)
        if kind == "studio":
            pictures(base / "p")
            with Project(base / "p") as project:
                for _ in range(12):
                    act(project, RNG)
        if kind == "parts":  # the last picture stops it
            assert not run("predict model pictures broken.png --out a.csv --strict")
        if kind == "store":
            (base / "s").mkdir()
            open_shards(base)
        for line in first[kind]:
            assert run(line), line
        target = folder / "templates" / kind / own
        target.parent.mkdir(parents=True)
        if kind == "studio":
            target = target.parent
            target.rmdir()
        shutil.move(base / own.split("/")[0], target)
        os.chdir(folder)
        shutil.rmtree(base)
