"""Which tests share a worker when several run at once (`make test`).

What takes long to make, a server above all, is made once: the tests that take it run in one worker, one after the
other. All other tests go wherever there is room.
"""

import pytest

SHARED = (
    # Servers (integration/).
    "deployed",
    "small",
    "live",
    "taking",
    "postgresql",
    # Exported graphs (unit/).
    "minilm",
    "graphs",
    "exported",
    "fp32",
    "fp16",
)
"""Fixtures that are made once; of several that a test takes, the first counts."""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "xdist_group(name): the tests of a group share a worker and its fixtures")


@pytest.hookimpl(tryfirst=True)  # before xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        taken = getattr(item, "fixturenames", ())
        if shared := next((fixture for fixture in SHARED if fixture in taken), None):
            item.add_marker(pytest.mark.xdist_group(shared))
