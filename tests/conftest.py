"""Which tests share a worker when several run at once (`make test`): those of a file, and all that take the one server.

What takes long to make is so made once. `deployed` comes first, for it takes longest.
"""

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "xdist_group(name): the tests of a group share a worker and its fixtures")


@pytest.hookimpl(tryfirst=True)  # before xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    takes_server = {item: "deployed" in getattr(item, "fixturenames", ()) for item in items}
    items.sort(key=lambda item: not takes_server[item])
    for item in items:
        item.add_marker(pytest.mark.xdist_group("deployed" if takes_server[item] else item.path.stem))
