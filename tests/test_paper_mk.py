"""What `make paper` would run: every command composes, and together they make the whole paper."""

import re
import shlex
import shutil
import subprocess

import pytest

from tests.conftest import ROOT, composed, quick_first
from zfscope.analyses.spec import AnalyzeConfig
from zfscope.schema import check
from zfscope.training.spec import TrainConfig

LAPTOP = ["scale=laptop"]
IMAGENET = ["scale=imagenet", "imagenet=/i", "caltech101=/c", "caltech256=/d", "voc2012=/v", "faces=f.csv"]


@pytest.fixture
def commands(tmp_path):
    """What make would run where nothing was run yet, as (command, overrides)."""
    for name in ("Makefile", "paper.mk", "requirements.txt", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / ".venv/lib/python3.11/site-packages/elpv_dataset").mkdir(parents=True)

    def listed(*variables):
        made = subprocess.run(
            ["make", "-n", "paper", *variables], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60
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
    members = re.findall(r"experiment=(table3_\w+) .*\bseed=(\d)$", "\n".join(run), re.M)
    assert members == [*(("table3_zfnet", str(seed)) for seed in range(5)), ("table3_zfnet_wide", "5")]
    analyses = {path.stem for path in (ROOT / "conf/analysis").glob("*.yaml")}
    analyses_run = set(re.findall(r"analysis=(\w+)", " ".join(run)))
    own = {"overlap"} if variables is LAPTOP else set()
    assert analyses - analyses_run == {"evaluate", "projections", "embedding"} | own
    for claim_over_seeds in ("evolution", "invariance", "occlusion", "correspondence", "transfer", "probes"):
        assert sum(f"analysis={claim_over_seeds} " in line for line in run) >= 3


def test_what_is_there_is_not_made_again_and_what_was_interrupted_goes_on(tmp_path):
    for name in ("Makefile", "paper.mk", "requirements.txt", "requirements.lock", "pyproject.toml"):
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
