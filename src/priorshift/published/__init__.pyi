from ._contents import TABLES as TABLES
from ._tables import Cell as Cell
from ._tables import Column as Column
from ._tables import Row as Row
from ._tables import Table as Table

__all__: list[str]
