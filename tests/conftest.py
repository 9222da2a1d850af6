"""Fixtures that more than one test module asks for."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.sshd import Sshd, missing_programs, running_sshd


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
