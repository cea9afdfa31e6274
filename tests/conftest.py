import os
from pathlib import Path

import pytest
import torch

from common.reporting import report
from common.training import progress
from tests.tiny_runs import World, make_world


def pytest_configure() -> None:
    """Tiny models gain nothing from threads, which on a busy machine only wait for each other, and files of tests need
    not outlive a power cut: nothing waits for the disk."""
    torch.set_num_threads(1)
    os.fsync = lambda descriptor: None  # type: ignore[assignment]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that need a GPU are skipped where there is none."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Tiny models and data on the disk, for whole runs."""
    return make_world(Path(tmp_path_factory.mktemp("world")))


@pytest.fixture(autouse=True)
def no_charts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the time of a tiny run is that of drawing its curves, which only tests marked ``charts`` look at."""
    if request.node.get_closest_marker("charts") is None:
        monkeypatch.setattr(report, "_chart_svg", lambda *_: report.Markup('<svg role="img"></svg>'))


@pytest.fixture(autouse=True)
def loud() -> None:
    """A run sets for the whole process whether progress is shown; no test is to see what another one set."""
    progress.set_quiet(False)
    progress.set_verbose(False)
