"""Options of the suites."""


def pytest_addoption(parser):
    parser.addoption("--runners", default="", help="parts of runners' names, comma-separated; default all")
