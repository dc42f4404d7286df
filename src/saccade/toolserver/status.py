"""What a running service says of itself, for people."""

from __future__ import annotations

import os
from typing import Any

import httpx
from rich.table import Table

from saccade.errors import ToolUnavailable
from saccade.toolserver.serving import TOKEN

__all__ = ["status", "tables"]


def status(url: str) -> dict[str, Any]:
    """Rows of tools and of workers. Raises ToolUnavailable where nobody answers as a service."""
    token = os.environ.get(TOKEN, "").strip()
    try:
        response = httpx.get(
            f"{url.rstrip('/')}/status", headers={"Authorization": f"Bearer {token}"}, timeout=5
        )
        found: dict[str, Any] = response.json()
    except (httpx.HTTPError, ValueError) as error:
        raise ToolUnavailable(f"No service of tools answers at {url}: {error}.") from None
    if response.status_code != 200:
        raise ToolUnavailable(f"The service at {url} refused: {found.get('error')} Set {TOKEN}.")
    return found


def tables(found: dict[str, Any]) -> list[Table]:
    """One of tools, one of workers; the latter only where there are any."""
    return [_table(rows) for rows in (found["tools"], found["workers"]) if rows] or [_table([])]


def _table(rows: list[dict[str, Any]]) -> Table:
    """A column for each row: names of counts are long, and tools are few."""
    if not rows:
        return Table("no calls yet")
    first = next(iter(rows[0]))
    table = Table(first, *(str(row[first]) for row in rows))
    for name in list(rows[0])[1:]:
        cells = (row[name] for row in rows)
        table.add_row(name, *("–" if cell is None else str(cell) for cell in cells))
    return table
