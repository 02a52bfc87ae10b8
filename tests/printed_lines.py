"""The lines that README and docs print: which are run, which are not and why, and how they are made short."""

import re
import shlex

from tests.scripts.same_commands import commands_of
from tests.test_docs import PAGES

TEXTS = {page.name: page.read_text(encoding="utf-8") for page in PAGES}
# As a person would type it: "train.py debug=fast". A command on several pages is one command.
LINES = {
    shlex.join([f"{name}.py", *arguments]): (name, *arguments)
    for text in TEXTS.values()
    for name, *arguments in commands_of(text)
}
TOOLS = r"(?:[A-Z_]+=\S+ )*(?:make|pip|pytest|wandb|source|python (?:benchmarks|tests)/[\w/]+\.py)\b"
# Printed commands of other programs, without what explains them.
OTHERS = {
    re.split(r"\s{2,}|;", line)[0].strip()
    for text in TEXTS.values()
    for number, part in enumerate(text.split("```"))
    for line in re.findall(rf"^{TOOLS}.*" if number % 2 else rf"`({TOOLS}(?: [^`]*)?)`", part, re.M)
}
BLOCKS = {
    f"{page} {number}": block
    for page, text in TEXTS.items()
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", text, re.S))
}
# "`analysis=occlusion analysis.part=test`" within a sentence: a command of analyze.py without its checkpoint.
ANALYSES = sorted({line for text in TEXTS.values() for line in re.findall(r"`(analysis=\w+(?: [^`]*)?)`", text)})
INLINE_IMPORTS = sorted(
    {line for text in TEXTS.values() for line in re.findall(r"`(from \w[^`]* import [^`]*)`", text)}
)

# What is printed and not run here, and why.
COMPOSED = "test_paper_mk composes its commands"
DOWNLOADS = "downloads; tests/commands/test_weights_file.py runs such lines with a file"
MINUTES = "minutes that mean something on a quiet machine only; its --help is tested here"
NOT_RUN = {
    "analyze.py": "the name of the file: it needs a checkpoint",
    "train.py 'experiment=table3_…'": "stands for the rows of Table 3, which the sweep over them runs",
    "analyze.py analysis=ensemble 'checkpoint=[outputs/six/0,outputs/RUN/last,zoo/zfnet]' analysis.part=val": (
        "its members must have the classes of ImageNet, and outputs/RUN those of the phantom"
    ),
    "train.py resume=outputs/sweeps/SWEEP": "needs a sweep; tests/commands/test_sweeps.py repeats one",
    "make test-slurm": "needs root and Slurm; run by hand",
    "make test-atlas": "needs Chromium and playwright; run by hand",
    "make train": "about six minutes, and an environment of 6 GB; run by hand",
    "make test": "runs these tests; CI runs it",
    "make test-all": "runs these tests",
    "make coverage": "runs these tests",
    'pytest tests/fuzz -m "" --hypothesis-profile=other': "minutes, and other cases each time",
    "make faults ROW=kills": "minutes; it writes into docs/reliability.md",
    "make mutants": "runs these tests many times",
    "python tests/scripts/mutants.py run --list program": "runs these tests many times",
    "make paper": f"three quarters of an hour; {COMPOSED}",
    "make paper scale=imagenet imagenet=DIR caltech101=DIR …": f"weeks of a GPU; {COMPOSED}",
    "make paper scale=imagenet imagenet=DIR caltech101=DIR caltech256=DIR voc2012=DIR faces=FILE.csv": (
        f"weeks of a GPU; {COMPOSED}"
    ),
    "make cache": "needs a data set; tests/analyses/test_cache.py types its command",
    "make cache data=imagenet root=DIR": "tests/analyses/test_cache.py types its command",
    "make cache data=imagenet root=DIR check=true": "tests/analyses/test_cache.py types its command",
    "make bench": "40 minutes that mean something on a quiet machine only",
    "make bench only=step": "the same of one benchmark",
    "make transfer": f"40 minutes; {COMPOSED}",
    "make transfer fashion_mnist=DIR": f"40 minutes; {COMPOSED}",
    "python benchmarks/occlusion.py": MINUTES,
    "python benchmarks/refusals.py --rounds 3": MINUTES,
    "python benchmarks/sameness.py FOLDER zoo/squeezenet1_1 zoo/efficientnet_lite0": MINUTES,
    "python benchmarks/projections.py": MINUTES,
    "python benchmarks/sweep.py": MINUTES,
    "OMP_NUM_THREADS=1 python benchmarks/linear_classifiers.py --c 0.1": MINUTES,
    "python benchmarks/step.py --losses": MINUTES,
    "python benchmarks/watching.py": MINUTES,
    "OMP_NUM_THREADS=1 python benchmarks/cost.py": MINUTES,
    "OMP_NUM_THREADS=1 python benchmarks/cost.py --sweep benchmarks/cost_sweep_2.yaml": MINUTES,
    "pip install -e '.[elpv]'": "downloads; a test here looks for the extra",
    "pip install -e '.[fonts]'": "downloads; a test here looks for the extra",
    "pip install -e '.[imagenet]'": "downloads; a test here looks for the extra",
    "pip install -e '.[zoo]'": "downloads; a test here looks for the extra",
    "pip install .": "tests/test_package.py builds the package and types its commands",
    "pip install playwright axe-playwright-python": "downloads; only make test-atlas needs them",
    "source .venv/bin/activate": "a shell's own",
    "wandb sync …": "sends a run to W&B: needs an account",
    "wandb sweep sweep.yaml": "needs an account; a test here composes what its agent types",
}
NOT_RUN |= {
    line: "several ranks start as processes of a file; tests/commands/test_ranks.py has such lines"
    for line in LINES
    if "trainer.devices=2" in line
}
NOT_RUN |= {line: DOWNLOADS for line in LINES if "timm/resnet50" in line}
NOT_RUN |= {line: "needs Slurm; make test-slurm runs such sweeps" for line in LINES if "launcher=slurm" in line}
TO_RUN = {line: words for line, words in LINES.items() if line not in NOT_RUN}
# Commands of other programs that are run, with what is appended.
OTHERS_RUN = {
    "make -n paper": [],
    "python tests/scripts/draw_rooms.py": ["--check"],
    "python benchmarks/cost_imagenet.py": [],
}
LOGGED = ("train.py", "analyze.py analysis=evaluate checkpoint=outputs/RUN")  # with W&B, offline

# What is appended where the line does not say it.
ONE_STEP = (
    "device=cpu",
    "logger=none",
    "data.num_workers=0",
    "data.batch_size=4",
    "evaluate.ten_crops=false",
    "++trainer.max_epochs=1",
    "++trainer.limit_train_batches=1",
    "++trainer.limit_val_batches=1",
)
FEW = {
    "atlas": ["pages=2", "layers=[conv5]"],
    "correspondence": ["masks=2"],
    "diagnostics": ["images=16", "maps=2"],
    "embedding": ["images=16", "neighbours=3", "draws=2"],
    "ensemble": ["part=val", "ten_crops=false"],
    "evaluate": ["part=val", "ten_crops=false"],
    "evolution": ["images=16", "maps=1"],
    "invariance": ["images=4"],
    "ledger": [],
    "occlusion": ["images=1", "top=1"],
    "overlap": [],
    "probes": ["folds=2", "test_images=4"],
    "projections": ["maps=2", "controls=2"],
    "frozen,probes": ["folds=2", "test_images=4"],
    "transfer": ["images_per_class=[6]", "folds=2", "test_images=4", "scratch_steps=1", "scratch_folds=1"],
}


def shortened(name, words):
    """The words of a command with what makes it short appended, where they do not say it themselves."""
    if any(word.startswith(("--help", "resume=")) for word in words):
        return words  # a run that goes on has its values from its start
    if name == "train":
        here = any(word.startswith("data.root=") for word in words)
        added = [*ONE_STEP, *([] if here else ["evaluate.enabled=false"])]
        if "trainer=gpu" in words:
            added += ["trainer.accelerator=cpu"]
        if "trainer=gpus" in words:
            added += ["trainer.accelerator=cpu", "trainer.devices=1"]
        if re.search(r"model=(?!zfnet_mini)|experiment=(glob.)?(table3|zoo)", " ".join(words)):
            added += ["callbacks=none"]  # pictures of networks of 224 px: half a minute each
        if re.search(r"model=zfnet\b|experiment=(glob.)?table3", " ".join(words)):
            added += ["model.conv5.maps=8"]  # fc6 would have 38 million weights
    else:
        analysis = next((word.partition("=")[2] for word in words if word.startswith("analysis=")), None)
        swept = next((word for word in words if word.startswith("experiment=")), None)
        added = ["device=cpu", "logger=none", *(["analysis=transfer"] if swept else [])]
        added += [f"analysis.{option}" for option in FEW[analysis or ("transfer" if swept else "evaluate")]]
    keys = {word.partition("=")[0].lstrip("+") for word in words}
    return [*words, *(word for word in added if word.partition("=")[0].lstrip("+") not in keys)]


def placed(words, data):
    """The words with folders in place of DIR, IMAGENET, A, B and RUN, and without the dots that stand for more."""
    chosen = re.search(r"\b(?:data=|experiment=)(\w+)", " ".join(words))
    name = {"zoo_zfnet": "folder", "fashion_mnist_half": "fashion_mnist"}.get(chosen[1], chosen[1]) if chosen else ""
    own = re.sub(r"^table3\w*|^glob$", "imagenet", name).removesuffix("_pretrained")
    places = {"DIR": own, "IMAGENET": "imagenet", "A": "imagenet", "B": "caltech101"}
    places["/usr/share/datasets/fashion-mnist"] = "fashion_mnist"
    words = [word for word in words if word != "…"]
    return [
        re.sub(r"(root)=(.*)", lambda match: f"{match[1]}={data / places[match[2]]}", word).replace(
            "=RUN/", "=outputs/RUN/"
        )
        for word in words
    ]
