"""The page in a browser: one server, a Chromium that is there already, and tabs of it."""

import shutil

import pytest
from tabs import Tab, serving

ARGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def pytest_addoption(parser):
    parser.addoption("--picture", help="write docs/app.png anew, here")


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("server")) as (url, _):
        yield url


@pytest.fixture(scope="session")
def browser():
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.exit(f"none of {', '.join(BROWSERS)} is on PATH; apt install chromium", returncode=1)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=found, args=list(ARGS))
        yield chromium
        chromium.close()


@pytest.fixture
def tab(server, browser):
    """Opens tabs, each a session of its own."""
    contexts = []

    def opened(url=server):
        contexts.append(browser.new_context(viewport={"width": 1280, "height": 890}, accept_downloads=True))
        return Tab(contexts[-1], url)

    yield opened
    for context in contexts:
        context.close()
