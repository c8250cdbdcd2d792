"""Configs of saved models that are changed, with a checksum that is right."""

import hashlib
import json


def rewrite_config(path, change):
    """Change a config of a model and its checksum with it."""
    config = json.loads(path.read_text())
    del config["checksum"]
    change(config)
    config["checksum"] = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(config))
