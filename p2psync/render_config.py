"""What people and scripts see of settings. Words only."""

from __future__ import annotations

import json
from typing import Any

from p2psync.core.paths import printable
from p2psync.settings import Settings
from p2psync.words import columns


def value_text(value: Any) -> str:  # noqa: ANN401 - of any setting
    """Return a value as it may be set again."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def text(settings: Settings) -> str:
    """Return all settings as lines: name, value, and where it is from."""
    rows = [
        (
            printable(name),
            printable(value_text(found.value)) if found.value is not None else "-",
            found.origin,
        )
        for name, found in sorted(settings.values.items())
    ]
    return columns(rows)


def as_json(settings: Settings) -> str:
    """Return all settings as one JSON document."""
    document = {
        name: {"value": found.value, "origin": found.origin}
        for name, found in sorted(settings.values.items())
    }
    return json.dumps(document, indent=2) + "\n"
