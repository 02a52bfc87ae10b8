"""What README and docs print: every command composes and is valid, every test that is named is there."""

import re

import pytest
from hydra._internal.utils import get_args_parser

from tests.conftest import ROOT
from tests.scripts.same_commands import commands_of
from zfscope.commands import configs

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# What is no whole command of ours, and why.
NOT_COMPOSED = {
    "…": "a part of a command",
    "--help": "answered by Hydra; test_commands types it",
    "resume=outputs/RUN": "needs a run; test_run goes on with one",
    "SWEEP": "needs a sweep; tests/commands/test_sweeps.py repeats one",
    "hydra/launcher=slurm": "needs Slurm; make test-slurm types such commands",
}
# Printed as examples of what is refused.
REFUSED = {"optim.lrr=0.1": "no key 'lrr'", "model.conv5.kernel_size=40": "40x40 kernel of conv5 is larger"}
COMMANDS = {
    f"{page.name}: {' '.join(command)}": command
    for page in PAGES
    for command in commands_of(page.read_text(encoding="utf-8"))
    if len(command) > 1 and not any(part in word for word in command for part in NOT_COMPOSED)
}


def test_the_pages_print_many_commands():
    assert len(COMMANDS) > 50
    assert {page.split(":")[0] for page in COMMANDS} >= {"README.md", "occlusion.md", "transfer.md", "projections.md"}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_printed_command_composes_and_is_valid(command, monkeypatch, tmp_path):
    name, *arguments = command
    check_values = configs._check_values
    monkeypatch.chdir(tmp_path)

    refusals = [message for override, message in REFUSED.items() if override in arguments]
    if refusals:
        with pytest.raises(ValueError, match=refusals[0]):
            configs.prepare(name, get_args_parser().parse_args(arguments))
        return
    refused = []

    def check(*values):  # of a sweep each job, where one that is refused would not end it
        try:
            return check_values(*values)
        except ValueError as error:
            refused.append(error)
            raise

    monkeypatch.setattr(configs, "_check_values", check)
    plan = configs.prepare(name, get_args_parser().parse_args(arguments))

    assert refused == [] and len(plan.kinds) >= 1
    assert list(tmp_path.iterdir()) == []


def test_the_images_of_the_commands_are_in_the_repository():
    images = {word.partition("=")[2] for command in COMMANDS.values() for word in command if word.startswith("image=")}

    assert images and all((ROOT / image).is_file() for image in images)


def named_tests(page):
    """Path and name of each test that a page names; rows of its tables that name none fail."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    text = re.sub("<!-- faults -->.*<!-- end of faults -->", "", text, flags=re.DOTALL)
    rows = [row for row in text.splitlines() if row.startswith("| ") and not row.endswith("| test |")]
    without = [row for row in rows if not re.search(r"`tests/[\w/]+\.py::\w+` \|$", row) and "**" not in row]
    assert without == []
    return re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)


@pytest.mark.parametrize("page", ["reliability.md", "bad-inputs.md"])
def test_the_tests_that_a_page_names_are_there(page):
    named = named_tests(page)

    assert len(named) > 15
    for path, test in named:
        assert f"\ndef {test}(" in (ROOT / path).read_text(encoding="utf-8"), (path, test)
