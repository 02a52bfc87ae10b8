"""What `make paper` and `make transfer` would run: every command composes, together they make the whole."""

import re
import shlex
import shutil
import subprocess

import pytest

from tests.conftest import ROOT, composed, quick_first
from zfscope.analyses.spec import AnalyzeConfig
from zfscope.report.claims import DESIGNS
from zfscope.report.designs import Design
from zfscope.schema import check
from zfscope.training.identity import training_identity
from zfscope.training.spec import TrainConfig

LAPTOP = ["scale=laptop"]
IMAGENET = ["scale=imagenet", "imagenet=/i", "caltech101=/c", "caltech256=/d", "voc2012=/v", "faces=f.csv"]


MAKEFILES = ("Makefile", "paper.mk", "requirements.txt", "requirements.lock", "pyproject.toml")


@pytest.fixture
def lines(tmp_path):
    """What make would run where nothing was run yet: the words of a command by its run folder."""
    for name in MAKEFILES:
        shutil.copy(ROOT / name, tmp_path)
    made = subprocess.run(["make", "-n", "paper"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    words = [shlex.split(line) for line in made.splitlines() if "hydra.run.dir=" in line]
    return {word.partition("=")[2]: line[2:] for line in words for word in line if word.startswith("hydra.run.dir=")}


@pytest.fixture
def commands(tmp_path):
    """What make would run where nothing was run yet, as (command, overrides)."""
    for name in MAKEFILES:
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / ".venv/lib/python3.11/site-packages/elpv_dataset").mkdir(parents=True)

    def listed(*variables, target="paper"):
        made = subprocess.run(
            ["make", "-n", target, *variables], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60
        )
        lines = [shlex.split(line) for line in made.stdout.splitlines() if ".py " in line]
        return [
            (line[1], [word for word in line[2:] if not word.startswith("hydra.")])
            for line in lines
            if len(line) > 2 and line[1] in ("train.py", "analyze.py")
        ]

    return listed


@pytest.mark.parametrize("variables", quick_first([LAPTOP, IMAGENET], 1), ids=["laptop", "imagenet"])
def test_every_command_composes_and_is_valid(commands, variables):
    # One of those that differ in their seeds and the run that they look at.
    alike = {}
    for command, overrides in commands(*variables):
        words = (re.sub(r"^(checkpoint|seed|analysis\.seed)=.*", r"\1", override) for override in overrides)
        alike[command, *words] = overrides
    assert len(alike) > 20
    for (command, *_), overrides in alike.items():
        if command == "train.py":
            check(TrainConfig, composed(*overrides))
        else:
            check(AnalyzeConfig, composed(*overrides, name="analyze"))


@pytest.mark.parametrize("variables", [LAPTOP, IMAGENET], ids=["laptop", "imagenet"])
def test_all_rows_members_and_analyses_are_there(commands, variables):
    run = [" ".join(overrides) for _, overrides in commands(*variables)]

    rows = {path.stem for path in (ROOT / "conf/experiment").glob("table3_*.yaml")}
    assert rows <= set(re.findall(r"experiment=(\w+)", " ".join(run)))
    members = re.findall(r"experiment=(table3_\w+) .*\bseed=(\d+)$", "\n".join(run), re.M)
    first = 10 if variables is LAPTOP else 0
    assert members == [*(("table3_zfnet", str(first + n)) for n in range(5)), ("table3_zfnet_wide", str(first + 5))]
    analyses = {path.stem for path in (ROOT / "conf/analysis").glob("*.yaml")}
    analyses_run = set(re.findall(r"analysis=(\w+)", " ".join(run)))
    own = {"cache", *(["overlap"] if variables is LAPTOP else [])}
    assert analyses - analyses_run == {"evaluate", "projections", "embedding", "atlas"} | own
    for claim_over_seeds in ("evolution", "invariance", "occlusion", "correspondence", "transfer", "probes"):
        assert sum(f"analysis={claim_over_seeds} " in line for line in run) >= 3


def test_make_transfer_has_every_row_on_the_same_folds_and_every_look_at_public_networks(commands):
    made = commands("fashion_mnist=/f", target="transfer")

    learned: dict[tuple[str, str], list[list[str]]] = {}
    for command, overrides in made:
        if command == "train.py":
            check(TrainConfig, composed(*overrides))
            continue
        config = check(AnalyzeConfig, composed(*overrides, name="analyze"))
        if config.analysis.name == "transfer":
            row = (config.data["name"], str(config.checkpoint).removeprefix("outputs/"))
            learned.setdefault(row, []).append(config.analysis)
    networks = ("zoo/squeezenet1_1", "zoo/efficientnet_lite0", "transfer/pretrained")
    assert learned.keys() == {(data, network) for data in ("elpv", "fashion_mnist") for network in networks}
    for (data, network), several in learned.items():
        assert {(one.folds, one.seed, one.test_images) for one in several} == {(3, 0, None if data == "elpv" else 200)}
        assert any(one.images_per_class == (5, 15, 30, 60) for one in several)
        assert all(one.random_weights == (data == "elpv") for one in several)
        scratch = [one.images_per_class for one in several if one.scratch]
        assert scratch == {"zoo/squeezenet1_1": [(60,)], "transfer/pretrained": [(5, 15, 30, 60)]}.get(network, [])
    looks = [re.search(r"analysis=(\w+) checkpoint=zoo/(\w+)", " ".join(overrides)) for _, overrides in made]
    looks = {look.groups() for look in looks if look and look[1] != "transfer"}
    kinds = ("invariance", "occlusion", "correspondence", "probes")
    assert looks == {(kind, name) for kind in kinds for name in ("squeezenet1_1", "efficientnet_lite0")}
    seen = [overrides for _, overrides in made if {f"analysis={kind}" for kind in kinds} & set(overrides)]
    assert len(seen) == 8 and all("analysis.random_weights=true" in overrides for overrides in seen)
    assert "analysis.runs=[outputs/transfer]" in made[-1][1]


def test_make_transfer_leaves_out_the_data_sets_whose_files_are_not_there(commands, tmp_path):
    made = [" ".join(overrides) for _, overrides in commands("fashion_mnist=", target="transfer")]
    shutil.rmtree(tmp_path / ".venv")
    neither = [" ".join(overrides) for _, overrides in commands("fashion_mnist=", target="transfer")]

    assert any("data=elpv" in line for line in made) and not any("fashion_mnist" in line for line in made)
    assert {word for line in neither for word in line.split() if word.startswith("analysis=")} == {
        "analysis=occlusion", "analysis=correspondence", "analysis=ledger",
    }  # fmt: skip


def test_make_paper_runs_none_of_it(commands):
    assert not [overrides for _, overrides in commands(*LAPTOP) if "outputs/transfer" in " ".join(overrides)]


def test_what_is_there_is_not_made_again_and_what_was_interrupted_goes_on(tmp_path):
    for name in MAKEFILES:
        shutil.copy(ROOT / name, tmp_path)
    members = tmp_path / "outputs/paper/laptop/members"
    for folder in ("1", "2/checkpoints"):
        (members / folder).mkdir(parents=True)
    (members / "1/results.json").write_text("{}")

    made = subprocess.run(["make", "-n", "paper"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    trained = re.findall(r"experiment=table3_zfnet .* hydra\.run\.dir=\S+/members/(\d)$", made, re.M)
    assert trained == ["3", "4", "5"]
    assert "train.py resume=outputs/paper/laptop/members/2\n" in made


def test_what_is_drawn_before_the_runs_can_be_imported():
    (code,) = re.findall(
        r'python -c "(from [\w.]+ import \w+);', (ROOT / "paper.mk").read_text().replace("$(BIN)/", "")
    )

    exec(code)


@pytest.mark.parametrize(
    ("variables", "message"),
    [(["scale=imagenet"], "scale=imagenet needs imagenet=DIR"), (["scale=moon"], "there are laptop and imagenet")],
)
def test_what_is_missing_is_told(tmp_path, variables, message):
    shutil.copy(ROOT / "Makefile", tmp_path)
    shutil.copy(ROOT / "paper.mk", tmp_path)
    for stamp in (".venv/installed", "requirements.txt", "requirements.lock", "pyproject.toml"):
        (tmp_path / stamp).parent.mkdir(exist_ok=True)
        (tmp_path / stamp).touch()
    (tmp_path / ".venv/installed").touch()

    made = subprocess.run(["make", "paper", *variables], cwd=tmp_path, capture_output=True, text=True)

    assert made.returncode == 2
    assert message in made.stdout + made.stderr


# Of each claim, which folder of paper.mk's has the runs that decide it, and which the networks.
DECIDING = {
    "convergence": ("evolution", "members"),
    "invariance": ("invariance", "members"),
    "occlusion": ("occlusion", "members"),
    "correspondence": ("correspondence", "members"),
    "probes": ("probes/phantom", "pretrained"),
    "pretraining": ("transfer/phantom", "pretrained"),
    "dead_features": ("stem_diagnostics", "stem"),
    "aliasing": ("stem_diagnostics", "stem"),
    "renormalisation": ("unbounded_diagnostics", "unbounded"),
}


@pytest.mark.parametrize("name", DECIDING)
def test_what_decides_a_claim_is_run_with_the_seeds_and_under_the_condition_of_its_design(lines, name):
    design, (looks, networks) = Design.of(DESIGNS[name]), DECIDING[name]

    looked = [re.fullmatch(rf"outputs/paper/laptop/{looks}/(\d+)", folder) for folder in lines]
    assert sorted(int(found[1]) for found in looked if found) == sorted(design.seeds)
    for found in filter(None, looked):
        (checkpoint,) = [word for word in lines[found[0]] if word.startswith("checkpoint=")]
        folder = checkpoint.partition("=")[2].removesuffix("/last")
        assert folder.startswith(f"outputs/paper/laptop/{networks}/")
        training = [word for word in lines[folder] if not word.startswith("hydra.")]
        assert training.count(f"seed={found[1]}") == 1
    facts = training_identity(check(TrainConfig, composed(*training)).model_dump(), "images")["facts"]
    assert {key: facts.get(key) for key in design.where} == design.where


def test_the_ensemble_that_decides_has_the_seeds_of_its_design(lines):
    members = [words for folder, words in lines.items() if folder.startswith("outputs/paper/laptop/members/")]

    seeds = [int(word.partition("=")[2]) for words in members for word in words if word.startswith("seed=")]
    assert seeds == DESIGNS["ensemble"]["seeds"]
