"""All tables by the name that they have on the command line."""

from priorshift.published import _lade, _menon
from priorshift.published._tables import Table

TABLES: dict[str, Table] = {table.name: table for table in (*_lade.TABLES, *_menon.TABLES)}
"""Name → table: `lade-table-2` to `-6` and `-8` to `-11`, `la-table-2` to `-4`."""
