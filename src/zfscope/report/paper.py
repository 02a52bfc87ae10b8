"""The numbers that the paper prints: its Tables 1 to 7, cell by cell.

Source: Zeiler & Fergus, Visualizing and Understanding Convolutional Networks (arXiv 1311.2901v3; ECCV 2014).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

Printed = float | tuple[float, float] | None  # a number, one with its spread, or a place where none stands


@dataclass(frozen=True)
class Table:
    """One table as the paper lays it out.

    Attributes:
        number: 1 to 7.
        title: What it is about.
        unit: Of its numbers: ``%``, or ``0-1`` for shares.
        columns: What each column is called, by key.
        rows: What each row is called, by key.
        numbers: By row key, a number for each column.
        note: What one should know to read it.
        others: Keys of rows and columns that hold other people's results.
    """

    number: int
    title: str
    unit: str
    columns: Mapping[str, str]
    rows: Mapping[str, str]
    numbers: Mapping[str, Sequence[Printed]]
    note: str = ""
    others: frozenset[str] = field(default_factory=frozenset)

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
    number: int,
    title: str,
    columns: Mapping[str, str],
    rows: Mapping[str, tuple[str, Sequence[Printed]]],
    *,
    unit: str = "%",
    note: str = "",
    others: Sequence[str] = (),
) -> Table:
    names = {key: name for key, (name, _) in rows.items()}
    numbers = {key: tuple(printed) for key, (_, printed) in rows.items()}
    return Table(number, title, unit, columns, names, numbers, note, frozenset(others))


FOLDS = "Spreads are over 5 folds; ours over networks of differing seed, of a single network over its folds."

ERRORS = {"val_top1": "val top-1", "val_top5": "val top-5"}

TABLES = (
    _table(
        *(1, "Correspondence: mean feature sign change when a part is hidden; lower is more consistent"),
        {"conv5": "layer 5", "fc7": "layer 7"},
        {
            "right_eye": ("right eye", [(0.067, 0.007), (0.069, 0.015)]),
            "left_eye": ("left eye", [(0.069, 0.007), (0.068, 0.013)]),
            "nose": ("nose", [(0.079, 0.017), (0.069, 0.011)]),
            "random": ("random", [(0.107, 0.017), (0.073, 0.014)]),
        },
        unit="0-1",
        note="Five photographs of dogs, not published; what its spreads are over the paper does not say. Ours are over "
        "networks of differing seed, of a single network over pairs of images and over random masks.",
    ),
    _table(
        *(2, "ImageNet 2012: classification error"),
        {**ERRORS, "test_top5": "test top-5"},
        {
            "gunji": ("Gunji et al. (no convnet)", [None, None, 26.2]),
            "krizhevsky_1": ("Krizhevsky, 1 net", [40.7, 18.2, None]),
            "krizhevsky_5": ("Krizhevsky, 5 nets", [38.1, 16.4, 16.4]),
            "krizhevsky_1_more": ("Krizhevsky, 1 net, + ImageNet 2011", [39.0, 16.6, None]),
            "krizhevsky_7_more": ("Krizhevsky, 7 nets, + ImageNet 2011", [36.7, 15.4, 15.3]),
            "alexnet": ("replication of Krizhevsky, 1 net", [40.5, 18.1, None]),
            "zfnet": ("Fig. 3, 1 net", [38.4, 16.5, None]),
            "zfnets": ("(a) Fig. 3, 5 nets", [36.7, 15.3, 15.3]),
            "zfnet_wide": ("(b) layers 3-5: 512, 1024, 512 maps, 1 net", [37.5, 16.0, 16.1]),
            "six": ("(a) + (b), 6 nets", [36.0, 14.7, 14.8]),
        },
        note="Ten crops. The labels of ImageNet's test images are not public.",
        others=["gunji", "krizhevsky_1", "krizhevsky_5", "krizhevsky_1_more", "krizhevsky_7_more"],
    ),
    _table(
        *(3, "Architecture changes, each trained from scratch: error on ImageNet 2012"),
        {"train_top1": "train top-1", **ERRORS},
        {
            "alexnet": ("Krizhevsky replication", [35.1, 40.5, 18.1]),
            "alexnet_without_3_4": ("- without layers 3, 4", [41.8, 45.4, 22.1]),
            "alexnet_without_7": ("- without layer 7", [27.4, 40.0, 18.4]),
            "alexnet_without_6_7": ("- without layers 6, 7", [27.4, 44.8, 22.4]),
            "alexnet_without_3_4_6_7": ("- without layers 3, 4, 6, 7", [71.1, 71.3, 50.1]),
            "alexnet_fc2048": ("- layers 6, 7: 2048 units", [40.3, 41.7, 18.8]),
            "alexnet_fc8192": ("- layers 6, 7: 8192 units", [26.8, 40.0, 18.1]),
            "zfnet": ("Our model (Fig. 3)", [33.1, 38.4, 16.5]),
            "zfnet_fc2048": ("- layers 6, 7: 2048 units", [38.2, 40.2, 17.6]),
            "zfnet_fc8192": ("- layers 6, 7: 8192 units", [22.0, 38.8, 17.0]),
            "zfnet_wide": ("- layers 3, 4, 5: 512, 1024, 512 maps", [18.8, 37.5, 16.0]),
            "zfnet_wide_fc8192": ("- both: 8192 units and 512, 1024, 512 maps", [10.0, 38.3, 16.9]),
        },
        note="Ours of training is measured while training, in the last epoch, on augmented views and with dropout.",
    ),
    _table(
        *(4, "Caltech-101: mean accuracy per class by training images per class"),
        {"15": "15 per class", "30": "30 per class"},
        {
            "bo": ("Bo et al. 2013", [None, (81.4, 0.33)]),
            "jianchao": ("Jianchao et al. 2009", [73.2, 84.3]),
            "scratch": ("from scratch", [(22.8, 1.5), (46.5, 1.7)]),
            "pretrained": ("pretrained on ImageNet", [(83.8, 0.5), (86.5, 0.5)]),
        },
        note=FOLDS,
        others=["bo", "jianchao"],
    ),
    _table(
        *(5, "Caltech-256: mean accuracy per class by training images per class"),
        {"15": "15 per class", "30": "30 per class", "45": "45 per class", "60": "60 per class"},
        {
            "sohn": ("Sohn et al. 2011", [35.1, 42.1, 45.7, 47.9]),
            "bo": ("Bo et al. 2013", [(40.5, 0.4), (48.0, 0.2), (51.9, 0.2), (55.2, 0.3)]),
            "scratch": ("from scratch", [(9.0, 1.4), (22.5, 0.7), (31.2, 0.5), (38.8, 1.4)]),
            "pretrained": ("pretrained on ImageNet", [(65.7, 0.2), (70.6, 0.2), (72.7, 0.4), (74.2, 0.3)]),
        },
        note=FOLDS,
        others=["sohn", "bo"],
    ),
    _table(
        *(6, "PASCAL VOC 2012, classification: average precision"),
        {"sande": "Sande et al.", "yan": "Yan et al.", "pretrained": "pretrained on ImageNet"},
        {
            "aeroplane": ("aeroplane", [92.0, 97.3, 96.0]),
            "bicycle": ("bicycle", [74.2, 84.2, 77.1]),
            "bird": ("bird", [73.0, 80.8, 88.4]),
            "boat": ("boat", [77.5, 85.3, 85.5]),
            "bottle": ("bottle", [54.3, 60.8, 55.8]),
            "bus": ("bus", [85.2, 89.9, 85.8]),
            "car": ("car", [81.9, 86.8, 78.6]),
            "cat": ("cat", [76.4, 89.3, 91.2]),
            "chair": ("chair", [65.2, 75.4, 65.0]),
            "cow": ("cow", [63.2, 77.8, 74.4]),
            "diningtable": ("dining table", [63.2, 77.8, 67.7]),
            "dog": ("dog", [68.9, 83.0, 87.8]),
            "horse": ("horse", [78.2, 87.5, 86.0]),
            "motorbike": ("motorbike", [81.0, 90.1, 85.1]),
            "person": ("person", [91.6, 95.0, 90.9]),
            "pottedplant": ("potted plant", [55.9, 57.8, 52.2]),
            "sheep": ("sheep", [69.4, 79.2, 83.6]),
            "sofa": ("sofa", [65.4, 73.4, 61.1]),
            "train": ("train", [86.7, 94.5, 91.8]),
            "tvmonitor": ("TV monitor", [77.4, 80.7, 76.1]),
            "mean": ("mean", [74.3, 82.2, 79.0]),
        },
        note="The references' numbers for cow and dining table are the same in our source.",
        others=["sande", "yan"],
    ),
    _table(
        *(7, "How good each layer's features are: accuracy of a linear classifier on them"),
        {"caltech101": "Caltech-101, 30 per class", "caltech256": "Caltech-256, 60 per class"},
        {
            "svm/conv1": ("SVM (1)", [(44.8, 0.7), (24.6, 0.4)]),
            "svm/conv2": ("SVM (2)", [(66.2, 0.5), (39.6, 0.3)]),
            "svm/conv3": ("SVM (3)", [(72.3, 0.4), (46.0, 0.3)]),
            "svm/conv4": ("SVM (4)", [(76.6, 0.4), (51.3, 0.1)]),
            "svm/conv5": ("SVM (5)", [(86.2, 0.8), (65.6, 0.3)]),
            "svm/fc7": ("SVM (7)", [(85.5, 0.4), (71.7, 0.2)]),
            "softmax/conv5": ("Softmax (5)", [(82.9, 0.4), (65.7, 0.5)]),
            "softmax/fc7": ("Softmax (7)", [(85.4, 0.4), (72.6, 0.1)]),
        },
        note=FOLDS,
    ),
)


def _by_size(table: Table) -> dict[str, dict[int, float]]:
    return {way: {int(size): table.value(way, size) for size in table.columns} for way in ("scratch", "pretrained")}


# By way of learning and training images per class; by class; by data set and training images per class.
TABLE_4, TABLE_5 = _by_size(TABLES[3]), _by_size(TABLES[4])

TABLE_6 = {name: TABLES[5].value(name, "pretrained") for name in TABLES[5].rows}

TABLE_7 = {
    (data, size): {tuple(row.split("/")): TABLES[6].value(row, data) for row in TABLES[6].rows}
    for data, size in (("caltech101", 30), ("caltech256", 60))
}
