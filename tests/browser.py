"""A headless Chromium that tests of pages share."""

import shutil
import socket
from contextlib import contextmanager

import pytest

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-extensions", "--force-prefers-reduced-motion"),
)
MARKS = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver (Debian: chromium-driver)"),
]


@contextmanager
def opened(profile, **logs):
    """A browser that this process talks to on the machine itself; all other connections stay refused.

    Args:
        profile: an empty folder.
        logs: what it keeps, as ``performance="ALL"``; the console always.
    """
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    refuse = socket.socket.connect
    inner = socket.socket.__bases__[0].connect

    def connect(self, address):
        local = isinstance(address, tuple) and address[0] in ("127.0.0.1", "::1")
        return inner(self, address) if local else refuse(self, address)

    options = webdriver.ChromeOptions()
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", **logs})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", connect)
        patch.setenv("SE_OFFLINE", "true")
        driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
        yield driver
        driver.quit()
