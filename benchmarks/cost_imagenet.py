"""What the paper costs on ImageNet, as tables: hours, disk, memory and bytes of W&B. Nothing is run or measured here.

    python benchmarks/cost_imagenet.py [--write]

The trainings are those of ``make paper scale=imagenet``: their networks are built without memory from conf/, and their
work is counted as in cost.py. What a GPU makes of it is an *estimate, not measured*: the constants below say where each
number comes from. Rates of reading are those of docs/benchmarks.md. With ``--write`` the tables go into docs/scale.md.
"""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cost import VIEWS, Work, config_of, network_of, work_of

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/scale.md"
BEGIN, END = "<!-- written by benchmarks/cost_imagenet.py -->", "<!-- end of its tables -->"

# ImageNet 2012, and the trainings of `make paper scale=imagenet`: overrides and how many of them.
IMAGES, VALIDATION, CLASSES = 1_281_167, 50_000, 1000
TRAININGS: Mapping[str, tuple[tuple[str, ...], int]] = {
    "Fig. 3 (members 1 to 5)": (("experiment=table3_zfnet",), 5),
    "layers 3-5 wide (member 6)": (("experiment=table3_zfnet_wide",), 1),
    "Fig. 3, pretrained without Caltech's images": (("model=zfnet", "data=imagenet"), 3),
    "Fig. 3, unbounded filters": (("model=zfnet", "data=imagenet", "model.filter_rms=null"), 3),
    "Fig. 3, stem 11x11 stride 4": (("model=zfnet", "data=imagenet", "model/stem=11x11s4"), 3),
    **{
        f"Table 3, {row}": ((f"experiment=table3_{row}",), 1)
        for row in (
            *("alexnet", "alexnet_without_3_4", "alexnet_without_7", "alexnet_without_6_7"),
            *("alexnet_without_3_4_6_7", "alexnet_fc2048", "alexnet_fc8192"),
            *("zfnet_fc2048", "zfnet_fc8192", "zfnet_wide_fc8192"),
        )
    },
}
MEMBERS = tuple(TRAININGS)[:2]

# One H100 SXM by NVIDIA's data sheet, without sparsity.
PEAK = 989e12  # operations a second in bfloat16
BANDWIDTH = 3.35e12  # bytes a second
LINK = 450e9  # bytes a second from one GPU to the others, NVLink, one direction
# Assumed, from the slow end to the fast one.
SHARE = {"slow": 0.15, "middle": 0.3, "fast": 0.5}  # of the peak, that convolutions reach
SHARE_OF_BANDWIDTH = {"slow": 0.4, "middle": 0.6, "fast": 0.8}
HOST = {"slow": 12e-3, "middle": 6e-3, "fast": 3e-3}  # seconds in which Python and Lightning begin a step
READS = {"slow": 0.6, "middle": 1.0, "fast": 1.5}  # how fast its CPU reads, where the one of docs/benchmarks.md has 1
SHARE_OF_LINK = {"slow": 0.3, "middle": 0.5, "fast": 0.7}
TOUCHES = 24  # times that a step reads or writes a value of a map, 2 bytes, beside the convolutions themselves
UPDATE = 8  # times that it reads or writes a weight, 4 bytes: gradient, momentum, copy in bfloat16, checks
DISK = 1e9  # bytes a second of writing
# Images a second, docs/benchmarks.md: one thread from the cache, its pages in memory or not; a core that decodes JPEGs.
WARM, COLD, DECODED = 9300.0, 3300.0, 816.0
PROCESSES = 8  # that decode, for each GPU: data.num_workers=auto with eight cores or more
PICTURES = 20.0  # seconds of an epoch's pictures at 224 px on one core, measured, rounded up
PICTURE_BYTES = 2.8e6  # of an epoch in figures/, at 224 px, measured; W&B's folder has links to them


@dataclass(frozen=True)
class Training:
    """One of the trainings, counted."""

    work: Work
    epochs: int
    batch: int
    saved_epochs: int  # epoch_NNN.ckpt

    @property
    def weight_bytes(self) -> int:
        """Of a checkpoint of weights alone: also the mean image, and a hash for each image."""
        return 4 * self.work.weights + 4 * 3 * 256**2 + 8 * (IMAGES + VALIDATION)

    @property
    def checkpoint_bytes(self) -> int:
        """Of a whole run: best and last, with momentum, and those of the epochs."""
        return 2 * (self.weight_bytes + 4 * self.work.weights) + self.saved_epochs * self.weight_bytes


def training_of(overrides: tuple[str, ...]) -> Training:
    config = config_of([*overrides, "data.root=DIR"])
    saved = sum(epoch <= config.optim.epochs for epoch in config.checkpoints.epochs)
    network = network_of(config, CLASSES, "meta")
    return Training(work_of(network), config.optim.epochs, config.data.batch_size, saved)


def seconds_of_network(training: Training, images: int, case: str, backward: bool = True) -> float:
    """A GPU's seconds for a batch: arithmetic, then maps that pass through memory, then weights."""
    work = training.work
    operations = images * (work.operations if backward else 2 * work.multiply_adds)
    touched = 2 * images * (work.cells + work.normed) * TOUCHES * (1 if backward else 1 / 3)
    weights = 4 * work.weights * UPDATE if backward else 0
    return operations / (PEAK * SHARE[case]) + (touched + weights) / (BANDWIDTH * SHARE_OF_BANDWIDTH[case])


def hours(training: Training, case: str, reading: float, gpus: int = 1) -> tuple[float, str]:
    """Hours of a training on GPUs that share each batch, and what sets the pace of its steps.

    ``reading`` is in images a second for each GPU.
    """
    share, reading = training.batch / gpus, reading * READS[case]
    network = seconds_of_network(training, share, case)
    if gpus > 1:  # all-reduce of float32 gradients, not hidden behind the backward pass
        network += 2 * (gpus - 1) / gpus * 4 * training.work.weights / (LINK * SHARE_OF_LINK[case])
    paces = {"network": network, "host": HOST[case], "reading": share / reading}
    governs = max(paces, key=paces.get)
    steps = IMAGES // training.batch
    validated = VALIDATION / gpus
    validation = max(seconds_of_network(training, validated, case, backward=False), validated / reading)
    saving = 3 * (training.weight_bytes + 4 * training.work.weights) / DISK
    epoch = steps * paces[governs] + validation + saving + PICTURES
    evaluation = max(
        seconds_of_network(training, VALIDATION * VIEWS, case, backward=False), VALIDATION / (DECODED * READS[case])
    )
    return (training.epochs * epoch + evaluation) / 3600, governs


def spread(training: Training, reading: float, gpus: int = 1) -> str:
    """Hours of the middle case, with those of the fast and the slow one."""
    middle, fast, slow = (hours(training, case, reading, gpus)[0] for case in ("middle", "fast", "slow"))
    return f"{middle:.1f} ({fast:.1f} to {slow:.1f})"


def gpu_bytes(training: Training, images: int) -> float:
    """Weights, gradients, momentum and the copy in bfloat16; maps kept for the backward pass, about four of each."""
    work = training.work
    return work.weights * (4 + 4 + 4 + 2) + images * (work.cells + work.normed) * 4 * 2 * 2


def table_of_trainings(trainings: Mapping[str, Training]) -> list[str]:
    lines = [
        "| training | runs | multiply-adds, G | weights, M | hours, cache in memory "
        "| sets the pace | hours, cache on disk | hours, JPEGs | hours, eight GPUs share it | GPU memory, GB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, one in trainings.items():
        lines.append(
            f"| {name} | {TRAININGS[name][1]} | {one.work.multiply_adds / 1e9:.2f} | {one.work.weights / 1e6:.1f} "
            f"| {spread(one, WARM)} | {hours(one, 'middle', WARM)[1]} | {spread(one, COLD)} "
            f"| {spread(one, PROCESSES * DECODED)} | {spread(one, WARM, 8)} | {gpu_bytes(one, one.batch) / 1e9:.1f} |"
        )
    return lines


def table_of_totals(trainings: Mapping[str, Training]) -> list[str]:
    def total(names: Mapping[str, Training] | tuple[str, ...], case: str, reading: float, gpus: int = 1) -> float:
        return sum(TRAININGS[name][1] * hours(trainings[name], case, reading, gpus)[0] for name in names)

    def cell(count, reading: float = WARM) -> str:
        middle, fast, slow = (count(case, reading) for case in ("middle", "fast", "slow"))
        return f"{middle:.0f} ({fast:.0f} to {slow:.0f})"

    def longest(names, case: str, reading: float) -> float:
        return max(hours(trainings[name], case, reading)[0] for name in names)

    def packed(names, case: str, reading: float, places: int = 8) -> float:
        """Whole trainings, the longest first, each to the GPU that is free first."""
        jobs = sorted(
            (hours(trainings[name], case, reading)[0] for name in names for _ in range(TRAININGS[name][1])),
            reverse=True,
        )
        free = [0.0] * places
        for job in jobs:
            free[free.index(min(free))] += job
        return max(free)

    rows = {
        "one H100, one training after the other": lambda names: lambda *given: total(names, *given),
        "eight H100 that share each batch (`trainer=gpus`), one training after the other": (
            lambda names: lambda *given: total(names, *given, gpus=8)
        ),
        "eight H100, a training on each": lambda names: lambda *given: packed(names, *given),
        "a Slurm partition, a job with one GPU for each training": lambda names: lambda *given: longest(names, *given),
    }
    return [
        "| hours on | six networks, cache in memory | six networks, JPEGs | all 25 trainings, cache in memory |",
        "|---|---|---|---|",
        *(
            f"| {name} | {cell(row(MEMBERS))} | {cell(row(MEMBERS), PROCESSES * DECODED)} | {cell(row(trainings))} |"
            for name, row in rows.items()
        ),
    ]


def table_of_analyses(trainings: Mapping[str, Training]) -> list[str]:
    """Passes and trainings of each analysis of ``make paper``, and what they take beside a training of Fig. 3."""
    zfnet = trainings[MEMBERS[0]]
    step = max(HOST["middle"], seconds_of_network(zfnet, zfnet.batch, "middle")) / zfnet.batch

    def passes(count: float, read: float) -> float:
        """Minutes: the network, or decoding on eight cores."""
        network = seconds_of_network(zfnet, round(count), "middle", backward=False)
        return max(network, read / (PROCESSES * DECODED)) / 60

    def scratch(images: int) -> float:
        """Minutes of training from scratch for 70 epochs on so many images in all."""
        return 70 * images * max(step, 1 / (PROCESSES * DECODED)) / 60

    maps = 96 + 256 + 384 + 384 + 256
    rows = [
        ("Table 2, `ensemble` (ten crops of six networks)", 1, passes(6 * VIEWS * VALIDATION, VALIDATION)),
        ("Fig. 2, `projections`, all maps (not in `make paper`)", 1, passes(VALIDATION + 4 * 9 * maps, VALIDATION)),
        ("Fig. 4, `evolution` (8 epochs, 1,000 images)", 3, passes(8 * 1000, 8 * 1000)),
        ("Fig. 5, `invariance`; Fig. 6, `diagnostics`", 9, passes(VALIDATION, VALIDATION)),
        ("Fig. 7, `occlusion` (100 images, 144 squares; the top 9)", 3, passes(100 * 144 + VALIDATION, VALIDATION)),
        ("Table 1, `correspondence`", 3, passes(10_000, 100)),
        ("overlap of ImageNet with Caltech-101 and -256", 2, (IMAGES / (PROCESSES * DECODED) + 20e9 / 31e6) / 60),
        ("Table 7, `probes`: features alone; its classifiers take CPU hours, see below", 6, passes(30_607, 30_607)),
        ("Table 4, `transfer` to Caltech-101, 10 trainings from scratch", 3, scratch(5 * 101 * (15 + 30))),
        ("Table 5, Fig. 9, to Caltech-256, 25 trainings", 3, scratch(5 * 256 * (6 + 15 + 30 + 45 + 60))),
        ("Table 6, to PASCAL VOC 2012, one training", 3, scratch(11_540)),
    ]
    lines = ["| analysis | runs | minutes of a GPU each | hours of all |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {runs} | {max(1, minutes):.0f} | {runs * max(1, minutes) / 60:.1f} |"
        for name, runs, minutes in rows
    ]
    return lines


def table_of_room(trainings: Mapping[str, Training]) -> list[str]:
    """Disk, memory and W&B."""
    every = [one for name, one in trainings.items() for _ in range(TRAININGS[name][1])]
    six = [one for name in MEMBERS for one in [trainings[name]] * TRAININGS[name][1]]
    canvas = 3 * 256**2 + 16  # with its two hashes
    decoded = (IMAGES + VALIDATION) * canvas / 1e9
    saved = [sum(one.checkpoint_bytes for one in group) / 1e9 for group in (six, every)]
    drawn = [sum(one.epochs for one in group) * PICTURE_BYTES / 1e9 for group in (six, every)]
    features = 30_607 * 96 * 55**2 * 4
    return [
        "| what | six networks | all of `make paper` |",
        "|---|---|---|",
        "| ImageNet's JPEGs, GB (its archives: as much again until they are deleted) | 145 | 145 |",
        f"| decoded images, GB: {IMAGES + VALIDATION:,} of {canvas:,} bytes | {decoded:.0f} | {decoded:.0f} |",
        f"| checkpoints, GB | {saved[0]:.0f} | {saved[1]:.0f} |",
        "| pictures in `figures/`, GB, on the disk once, and what W&B is sent: "
        f"{70 * PICTURE_BYTES / 1e6:.0f} MB a run | {drawn[0]:.1f} | {drawn[1]:.1f} |",
        f"| a feature table while `probes` runs: conv1 of Caltech-256, GB | | {features / 1e9:.0f} |",
        "| host memory of the process of a training, GB, about | 4 | 4 |",
        f"| host memory for the cache's pages, GB, or reading goes at the disk's pace | {IMAGES * canvas / 1e9:.0f} "
        f"| {IMAGES * canvas / 1e9:.0f} |",
    ]


def tables() -> str:
    trainings = {name: training_of(overrides) for name, (overrides, _) in TRAININGS.items()}
    parts = {
        "Trainings on one H100, of 70 epochs in batches of 128; *estimate, not measured*:": table_of_trainings,
        "All of them, *estimate, not measured*:": table_of_totals,
        "What looks into them, *estimate, not measured*:": table_of_analyses,
        "Room, computed; the bytes of pictures are measured ones, times the epochs:": table_of_room,
    }
    return "\n\n".join([BEGIN, *(f"{title}\n\n" + "\n".join(part(trainings)) for title, part in parts.items()), END])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="into docs/scale.md")
    options = parser.parse_args()
    text = tables()
    if options.write:
        page = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(page[: page.index(BEGIN)] + text + page[page.index(END) + len(END) :], encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
