import pytest

from tests.conftest import ROOT, composed
from zfscope.analyses.spec import AnalyzeConfig
from zfscope.schema import check, nearest, plain
from zfscope.training.spec import TrainConfig, check_targets


def options(group):
    return sorted(path.stem for path in (ROOT / "conf" / group).glob("*.yaml"))


def command(experiment):
    """The command that an experiment says it belongs to, in its second line."""
    return (ROOT / "conf" / "experiment" / f"{experiment}.yaml").read_text().splitlines()[1].split()[2]


CHOICES = [
    *(f"model={name}" for name in options("model")),
    *(f"model/stem={name}" for name in options("model/stem")),
    *(f"data={name}" for name in options("data")),
    *(f"optim={name}" for name in options("optim")),
    *(f"optim/schedule={name}" for name in options("optim/schedule")),
    *(f"trainer={name}" for name in options("trainer")),
    *(f"logger={name}" for name in options("logger")),
    *(f"callbacks={name}" for name in options("callbacks")),
    *(f"experiment={name}" for name in options("experiment") if command(name) == "train.py"),
    *(f"scale={name}" for name in options("scale")),
    *(f"debug={name}" for name in options("debug")),
]


@pytest.mark.parametrize("choice", CHOICES)
def test_every_option_of_every_group_composes_and_is_valid(choice):
    config = check(TrainConfig, composed(choice))

    check_targets(config.callbacks, config.trust)


@pytest.mark.parametrize("name", options("analysis"))
def test_every_analysis_composes_and_is_valid(name):
    looked_at = [] if name in ("ledger", "overlap") else ["checkpoint=RUN"]

    check(AnalyzeConfig, composed(f"analysis={name}", *looked_at, name="analyze"))


@pytest.mark.parametrize("name", [name for name in options("experiment") if command(name) == "analyze.py"])
@pytest.mark.parametrize("analysis", ["transfer", "probes"])
def test_every_experiment_of_the_analyses_composes_and_is_valid(name, analysis):
    config = check(AnalyzeConfig, composed(f"experiment={name}", f"analysis={analysis}", name="analyze"))

    assert config.checkpoint == "zoo/zfnet"
    assert config.data["name"] == name.removesuffix("_pretrained") and config.data["download"]


def test_what_an_experiment_says_goes_before_the_defaults():
    assert composed("experiment=zoo_zfnet", "data.root=DIR")["weights"] == "zoo/zfnet"
    assert composed("experiment=elpv")["evaluate"]["checkpoint"] == "last"
    assert composed("experiment=table3_zfnet")["paper"]["val/top5_error_ten_crops"] == 16.5
    assert not composed("debug=fast")["evaluate"]["enabled"]


def test_every_config_file_opens_with_the_command_that_uses_it():
    for path in (ROOT / "conf").rglob("*.yaml"):
        lines = [line for line in path.read_text().splitlines() if not line.startswith("# @package")]

        assert lines[0].startswith(("# python train.py", "# python analyze.py")), path


def test_the_papers_recipe_comes_with_the_papers_network():
    config = check(TrainConfig, composed("model=zfnet", "data=imagenet", "data.root=DIR"))

    optim = config.optim
    assert (optim.name, optim.lr, optim.momentum, optim.weight_decay) == ("sgd", 0.01, 0.9, 5e-4)
    assert (optim.schedule.name, optim.schedule.factor, config.trainer.max_epochs) == ("plateau", 0.1, 70)
    assert (config.data.resize, config.data.crop, config.data.batch_size) == (256, 224, 128)
    model = config.model
    assert (model.init.scheme, model.init.std, model.input_scale, model.filter_rms) == ("normal", 0.01, 1.0, 0.1)
    assert (model.contrast.size, model.contrast.alpha, model.contrast.beta, model.contrast.k) == (5, 1e-4, 0.75, 2.0)
    assert (model.fc6.dropout, model.fc7.dropout, model.fc8.dropout) == (0.5, 0.5, 0.0)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("optim.lr", "abc", r"optim\.lr='abc': .*valid number"),
        ("optim.lr", float("nan"), r"optim\.lr=nan: .*"),
        ("optim.lr", float("inf"), r"optim\.lr=inf: .*finite"),
        ("optim.lr", -3, r"optim\.lr=-3: .*greater than 0"),
        ("optim.momentum", 5, r"optim\.momentum=5: .*less than 1"),
        ("model", 5, r"model=5: .*"),
        ("model.conv1.kernel_size", None, r"model\.conv1\.kernel_size=None: .*valid integer"),
        ("model.conv1.stride", 0, r"model\.conv1\.stride=0: .*greater than or equal to 1"),
        ("model.conv1.maps", 0, r"model\.conv1\.maps=0: .*greater than or equal to 1"),
        ("model.fc8", None, r"model: fc8 .*cannot be removed"),
        ("data.crop", 1000, r"data: crop=1000 is larger than resize=128"),
        ("data.batch_size", 0, r"data\.batch_size=0: .*"),
        ("optim.momentun", 0.9, r"optim\.momentun=0\.9: there is no such key; did you mean momentum\?"),
        ("model.conv1.kernel_sise", 3, r"model\.conv1\.kernel_sise=3: .*did you mean kernel_size\?"),
        ("modle", 3, r"modle=3: there is no such key; did you mean model\?"),
        ("device", "gpu7", r"device='gpu7': .*"),
        ("logger.log_model", True, r"logger: log_model=true .*logger=wandb logger\.mode=online"),
        ("optim.schedule", {"name": "cosine", "patience": 3}, r"optim\.schedule.*patience=3: there is no such key"),
        ("optim.schedule", {"name": "steps"}, r"optim\.schedule.*'plateau', 'cosine', 'constant'"),
    ],
)
def test_a_wrong_value_is_told_in_one_line_with_key_value_and_way_out(key, value, message):
    values = composed()
    node = values
    *path, last = key.split(".")
    for part in path:
        node = node[part]
    node[last] = value

    with pytest.raises(ValueError, match=message) as error:
        check(TrainConfig, values)

    assert "\n" not in str(error.value)


def test_a_foreign_target_is_refused_until_the_command_line_trusts_it():
    callbacks = {"mine": {"_target_": "os.system", "command": "true"}}

    with pytest.raises(ValueError, match=r"callbacks\.mine\._target_=os\.system .*'trust=\[os\.system\]'"):
        check_targets(callbacks)

    check_targets(callbacks, trust=["os.system"])


def test_a_callback_without_target_is_refused():
    with pytest.raises(ValueError, match=r"callbacks\.mine: _target_ is missing"):
        check_targets({"mine": {"every": 1}})


def test_a_callback_that_was_switched_off_needs_no_target():
    check_targets({"filter_images": None})


def test_any_keyword_of_the_trainer_passes_the_schema():
    config = check(TrainConfig, composed("+trainer.max_steps=3", "+trainer.limit_train_batches=0.5"))

    assert config.trainer.model_dump()["limit_train_batches"] == 0.5


def test_nearest_lists_what_there_is_when_nothing_is_near():
    assert nearest("xyzzy", ["lr", "momentum"]) == "there are lr, momentum"


def test_plain_turns_nested_containers_into_dicts_and_lists():
    assert plain({"a": ({"b": (1, 2)},)}) == {"a": [{"b": [1, 2]}]}
