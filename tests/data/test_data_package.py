import subprocess
import sys

import clipadapter.data


def test_every_public_name_exists():
    assert [name for name in clipadapter.data.__all__ if not hasattr(clipadapter.data, name)] == []


def test_importing_loads_nothing_heavy():
    code = "import sys, clipadapter.data; print({'numpy', 'PIL', 'torch', 'pyarrow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
