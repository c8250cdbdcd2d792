"""What holds for every test: no network, no user's cache folder, no more threads than help."""

import socket

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def sealed(tmp_path_factory):
    """No connection leaves the machine, and nothing is written to the user's cache folder."""

    def refuse(self, address):
        raise OSError(f"a test tried to reach {address}")

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small networks gain nothing from more, and lose much beside other busy programs
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("OMP_NUM_THREADS", "1")  # for subprocesses
        yield
    torch.set_num_threads(threads)
