"""Fixtures that more than one test module asks for."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.sshd import Sshd, missing_programs, running_sshd
from tests.support import as_anyone

settings.register_profile("patient", deadline=None)  # how long an example takes says how busy the machine is
settings.load_profile("patient")


@pytest.fixture(scope="session", autouse=True)
def not_ignored() -> Iterator[None]:
    """Control-C is what it is, also where the tests run in the background of a script, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    """One OpenSSH server for the whole run (with pytest-xdist: for each worker)."""
    if missing := missing_programs():
        why = f"needs {', '.join(missing)} (Debian: openssh-server)"
        if os.environ.get("CI") or os.environ.get("P2PSYNC_REQUIRE_SSHD") == "1":
            pytest.fail(why)
        pytest.skip(why)
    with running_sshd(tmp_path_factory.mktemp("sshd")) as server:
        yield server


@pytest.fixture(scope="session", autouse=True)
def runtime_folder() -> Iterator[None]:
    """Whatever ssh is told beside its configuration is not kept where the user of this machine has his."""
    with (
        tempfile.TemporaryDirectory(prefix="p2p-", dir="/tmp") as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("XDG_RUNTIME_DIR", folder)
        yield


@pytest.fixture
def like_anyone() -> Iterator[None]:
    """The test may do with files what their permissions say, whoever runs it."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(as_anyone())
        except OSError:
            pytest.skip("root may read and write everything")
        yield


COUNTED = ("kill points", "error points", "power cuts", "edits between scan and apply")
"""What tests record as a property of how much they tried."""


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Tell how many points of failure were tried."""
    tried = Counter[str]()
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, value in getattr(report, "user_properties", ()) if is_of_call(report) else ():
                if name in COUNTED:
                    tried[name] += value
    if tried:
        terminalreporter.write_line("tried: " + ", ".join(f"{tried[name]} {name}" for name in tried))


def is_of_call(report: object) -> bool:
    return getattr(report, "when", None) == "call"
