"""A server of the page, and a browser tab with it."""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def serving(folder, *args):
    """(address, what is said on stderr) of an `invfast app` of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "invfast", "app", "--port", str(port), "--device", "cpu", *args]
    env = {**os.environ, "NO_COLOR": "1", "HF_HUB_OFFLINE": "1", "TMPDIR": str(folder), "HOME": str(folder / "home")}
    (folder / "home").mkdir()
    with open(folder / "stderr", "w+") as said:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, text=True, env=env, cwd=folder)
        try:
            assert process.stdout.readline().startswith("http://"), Path(said.name).read_text()
            yield f"http://127.0.0.1:{port}/", Path(said.name)
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 130
    assert not list((folder / "home").iterdir())
    left = [each.name for each in folder.iterdir() if each.name.startswith("invfast-app-")]
    assert not left, f"{left} outlived the server"


class Tab:
    """A browser tab with the page in it."""

    def __init__(self, context, url):
        self.page, self.elsewhere = context.new_page(), []
        self.page.set_default_timeout(60_000)
        self.page.on("request", lambda asked: self._asked(asked.url, url))
        self.page.goto(url)
        self.page.get_by_role("heading", name="invfast").wait_for()

    def _asked(self, asked, own):
        if not asked.startswith((own, "data:", "blob:")):
            self.elsewhere.append(asked)

    def open(self, *names):
        for name in names:
            self.page.get_by_role("tab", name=name, exact=True).click()

    def set(self, method=None, steps=None, model=None):
        """The fields above the tabs."""
        for label, value in {"Method": method, "Model": model}.items():
            if value is not None:
                self.page.get_by_label(label, exact=True).fill(value)
                self.page.get_by_label(label, exact=True).press("Enter")
        if steps is not None:
            field = self.page.get_by_label("number input for Steps")
            field.fill(str(steps))
            field.press("Tab")

    def upload(self, *given, to="Image"):
        """Files into the visible field of this label."""
        label = self.page.get_by_text(to, exact=True)
        field = self.page.locator("div.block").filter(has=label).locator("visible=true").last
        with self.page.expect_response(lambda answer: "upload" in answer.url and answer.ok):
            field.locator("input[type=file]").first.set_input_files(list(given))

    def click(self, name):
        self.page.get_by_role("button", name=name, exact=True).locator("visible=true").click()

    def toast(self, text):
        found = self.page.get_by_test_id("toast-body").filter(has_text=text).first
        found.wait_for()
        return found

    def download(self, name, folder):
        """The file behind a button, once it is there."""
        button = self.page.get_by_role("button", name=name, exact=True).locator("visible=true")
        link = self.page.get_by_role("link", name=name, exact=True).locator("visible=true")
        (button.or_(link)).and_(self.page.locator(":not([disabled])")).first.wait_for()
        with self.page.expect_download() as coming:
            (button.or_(link)).first.click()
        path = folder / f"{time.monotonic_ns()}-{coming.value.suggested_filename}"
        coming.value.save_as(path)
        return path

    def figures(self, timeout=60_000):
        """The text of the visible table, once it is there."""
        table = self.page.locator("table.figures").locator("visible=true")
        table.first.wait_for(timeout=timeout)
        return table.first.inner_text()
