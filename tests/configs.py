"""Saved models whose config or arrays are changed, with hashes that are right."""

import hashlib
import json


def rewrite_config(path, change):
    """Change a config of a model and its checksum with it."""
    config = json.loads(path.read_text())
    del config["checksum"]
    change(config)
    config["checksum"] = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(config))


def array_path(folder, name):
    """The file of a model's arrays, such as "head"."""
    sha256 = json.loads((folder / "config.json").read_bytes())["files"][name]
    return folder / "arrays" / f"{name}-{sha256[:16]}.safetensors"


def replace_arrays(folder, name, data):
    """Replace a file of a model's arrays, and its hash in the config."""
    digest = hashlib.sha256(data).hexdigest()
    rewrite_config(folder / "config.json", lambda config: config["files"].update({name: digest}))
    array_path(folder, name).write_bytes(data)


def flip_last_bit(path):
    """Damage a file."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
