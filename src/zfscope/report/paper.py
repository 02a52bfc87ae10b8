"""The numbers that the paper prints: its Tables 1 to 7, cell by cell, out of ``tables.yaml``.

Source: Zeiler & Fergus, Visualizing and Understanding Convolutional Networks (arXiv 1311.2901v3; ECCV 2014).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from zfscope.schema import nearest

Printed = float | tuple[float, float] | None  # a number, one with its spread, or a place where none stands


@dataclass(frozen=True)
class Table:
    """One table as the paper lays it out."""

    number: int  # 1 to 7
    title: str  # what it is about
    unit: str  # of its numbers: ``%``, or ``0-1`` for shares
    columns: Mapping[str, str]  # what each column is called, by key
    rows: Mapping[str, str]  # what each row is called, by key
    numbers: Mapping[str, Sequence[Printed]]  # by row key, a number for each column
    note: str = ""  # what one should know to read it
    others: frozenset[str] = frozenset()  # keys of rows and columns that hold other people's results

    def value(self, row: str, column: str) -> float | None:
        """The number at a place; None where none stands."""
        printed = self._printed(row, column)
        return printed[0] if isinstance(printed, tuple) else printed

    def spread(self, row: str, column: str) -> float | None:
        """Its ``+-``; None where none stands."""
        printed = self._printed(row, column)
        return printed[1] if isinstance(printed, tuple) else None

    def own(self, row: str, column: str) -> bool:
        """Whether the place is for a result of the paper's own, which can be run again."""
        return row not in self.others and column not in self.others

    def cells(self) -> Iterator[tuple[str, str]]:
        """Row and column of every number that stands there, row by row."""
        for row in self.rows:
            yield from ((row, column) for column in self.columns if self.value(row, column) is not None)

    def _printed(self, row: str, column: str) -> Printed:
        return self.numbers[row][list(self.columns).index(column)]


def _table(
    number: int, title: str, unit: str, columns: Mapping, rows: Mapping, note: str = "", others: Sequence = ()
) -> Table:
    names = {key: name for key, (name, *_) in rows.items()}
    numbers = {
        key: tuple(tuple(n) if isinstance(n, list) else n for n in printed) for key, (_, *printed) in rows.items()
    }
    return Table(number, title, unit, columns, names, numbers, note, frozenset(others))


TABLES = tuple(_table(**table) for table in yaml.safe_load(Path(__file__).with_name("tables.yaml").read_text("utf-8")))

METRICS = {
    "train/top1_error": "train_top1",
    "val/top1_error_ten_crops": "val_top1",
    "val/top5_error_ten_crops": "val_top5",
}


def numbers_of(row: str | Mapping[str, float] | None) -> dict[str, float]:
    """The paper's numbers for a training, by the metric that stands beside them.

    ``row`` is one of Table 3, or a single network of Table 2: ``zfnet_fc2048``. None has no numbers; a config of an
    older version holds the numbers themselves.
    """
    if row is None or isinstance(row, Mapping):
        return dict(row or {})
    if row not in TABLES[2].rows:
        raise ValueError(f"paper={row}: Table 3 has no such row; {nearest(row, list(TABLES[2].rows))}")
    return {metric: TABLES[2].value(row, column) for metric, column in METRICS.items()}


def _by_size(table: Table) -> dict[str, dict[int, float]]:
    return {way: {int(size): table.value(way, size) for size in table.columns} for way in ("scratch", "pretrained")}


# By way of learning and training images per class; by class; by data set and training images per class.
TABLE_4, TABLE_5 = _by_size(TABLES[3]), _by_size(TABLES[4])
TABLE_6 = {name: TABLES[5].value(name, "pretrained") for name in TABLES[5].rows}

TABLE_7 = {
    (data, size): {tuple(row.split("/")): TABLES[6].value(row, data) for row in TABLES[6].rows}
    for data, size in (("caltech101", 30), ("caltech256", 60))
}
