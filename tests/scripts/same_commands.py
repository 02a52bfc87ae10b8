"""Does every command that a tree's README and docs print mean the same in another tree?

    python tests/scripts/same_commands.py --old TREE --old-python PYTHON --new TREE --new-python PYTHON

Each command of the old README and docs is composed by both trees, job by job. Their values must be equal but for the
keys of ``RENAMED``. A command that the new tree refuses must be answered with its new spelling, which CHANGELOG.md
lists. Exit code 1 if one is not.
"""

import argparse
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

# Patterns of a command and its keys whose values may differ, and why.
RENAMED = {
    r"train paper(\..*)?": "names the row of Table 2 or 3, whose numbers stand in the report",
    r"analyze logger\..*": "analyses are logged too",
    r"analyze data\..*": "the values of the group, where the old tree said null or nothing for them",
}
NOT_COMPOSED = ("--help", "--cfg", "resume=", "…")  # Hydra's own, a run that is not there, not the whole command
# Runs in each tree: composes every job of each command and prints the values, or the refusal.
PROBE = """
import contextlib, json, sys
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
tree, commands = sys.argv[1], json.loads(sys.argv[2])
try:
    from zfscope.commands.configs import SCHEMAS, prepare
    from zfscope.commands.lines import one_line
    from zfscope.schema import check
except ImportError:  # a tree without this room
    from zfscope.config import AnalyzeConfig, TrainConfig, check
    SCHEMAS, one_line, prepare = {"train": TrainConfig, "analyze": AnalyzeConfig}, str, None
answers = []
for name, *arguments in commands:
    parsed = get_args_parser().parse_args(arguments)
    try:
        if prepare is not None:
            prepare(name, parsed)
        with initialize_config_dir(f"{tree}/conf", job_name=name, version_base="1.3"):
            loader = GlobalHydra.instance().config_loader()
            overrides = OverridesParser.create(config_loader=loader).parse_overrides(parsed.overrides)
            jobs = BasicSweeper.split_arguments(overrides, None)[0] if parsed.multirun else [parsed.overrides]
            values = []
            for job in jobs:
                config = compose(name, list(job), return_hydra_config=True)
                HydraConfig.instance().set_config(config)
                del config._content["hydra"]
                values.append(OmegaConf.to_container(config, resolve=True))
                check(SCHEMAS[name], values[-1])
        answers.append({"jobs": values})
    except BaseException as error:
        answers.append({"refusal": one_line(error)})
print(json.dumps(answers))
"""


def commands_of(page: str) -> list[list[str]]:
    """The commands of a page of Markdown, as ``[train or analyze, argument, …]``.

    In a block a command ends at two spaces, where its explanation begins; in a sentence it stands between backticks.
    """
    lines = []
    for number, part in enumerate(page.split("```")):
        if number % 2:
            lines += [re.split(r"\s{2,}", line)[0] for line in re.findall(r"python ((?:train|analyze)\.py\b.*)", part)]
        else:
            lines += [
                " ".join(code.split()) for code in re.findall(r"`(?:python )?((?:train|analyze)\.py[^`]*)`", part)
            ]
    commands = []
    for line in lines:
        for alternative in alternatives(line):
            words = shlex.split(alternative)
            commands.append([words[0].removesuffix(".py"), *words[1:]])
    return commands


def alternatives(line: str) -> list[str]:
    """``a.py x=1 | x=2`` as ``a.py x=1`` and ``a.py x=2``."""
    command, *arguments = re.split(r"\s+", line.strip(), maxsplit=1)
    return [f"{command} {argument}" for argument in arguments[0].split(" | ")] if arguments else [command]


def flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested values by their dotted keys."""
    if not isinstance(values, dict) or not values:
        return {prefix: values}
    return {
        key: leaf for name, value in values.items() for key, leaf in flat(value, f"{prefix}.{name}".strip(".")).items()
    }


def differences(command: str, old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """The keys whose values differ, but for those that were renamed."""
    before, after = flat(old), flat(new)
    return [
        f"{key}: {before.get(key, 'no such key')} -> {after.get(key, 'no such key')}"
        for key in sorted({*before, *after})
        if before.get(key, "no such key") != after.get(key, "no such key")
        and not any(re.fullmatch(pattern, f"{command} {key}") for pattern in RENAMED)
    ]


def probe(tree: Path, python: str, commands: list[list[str]]) -> list[dict[str, Any]]:
    """What a tree makes of the commands: the values of their jobs, or a refusal."""
    answer = subprocess.run(
        [python, "-c", PROBE, str(tree.resolve()), json.dumps(commands)], cwd=tree, capture_output=True, text=True
    )
    if answer.returncode:
        sys.exit(answer.stderr[-2000:])
    return json.loads(answer.stdout.splitlines()[-1])


def judge(command: str, old: dict[str, Any], new: dict[str, Any], changelog: str) -> tuple[str, list[str]]:
    """The verdict on a command, and its reasons, from what the two trees made of it."""
    if "refusal" in new:
        spelling = re.match(r"(\S+)=\S* is spelt otherwise now: ", new["refusal"])
        if spelling and spelling[1] in changelog:
            return "respelt", [new["refusal"]]
        return "refused by both" if "refusal" in old else "different", [new["refusal"]]
    if "refusal" in old:
        return "different", [f"the old tree refused it: {old['refusal']}"]
    if len(old["jobs"]) != len(new["jobs"]):
        return "different", [f"{len(old['jobs'])} jobs -> {len(new['jobs'])}"]
    jobs = zip(old["jobs"], new["jobs"], strict=True)
    reasons = sorted({line for before, after in jobs for line in differences(command, before, after)})
    return "different" if reasons else "equal", reasons


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("old", "new"):
        parser.add_argument(f"--{name}", type=Path, required=True)
        parser.add_argument(f"--{name}-python", required=True)
    options = parser.parse_args()
    pages = [options.old / "README.md", *sorted((options.old / "docs").glob("*.md"))]
    printed = [command for page in pages for command in commands_of(page.read_text(encoding="utf-8"))]
    unique = [list(command) for command in dict.fromkeys(map(tuple, printed))]
    skipped = [command for command in unique if any(part in word for word in command for part in NOT_COMPOSED)]
    commands = [command for command in unique if command not in skipped]
    changelog = (options.new / "CHANGELOG.md").read_text(encoding="utf-8")
    old = probe(options.old, options.old_python, commands)
    new = probe(options.new, options.new_python, commands)
    counts = dict.fromkeys(("equal", "refused by both", "respelt", "different"), 0)
    for command, before, after in zip(commands, old, new, strict=True):
        verdict, reasons = judge(command[0], before, after, changelog)
        counts[verdict] += 1
        if verdict != "equal":
            print(f"{verdict}: {' '.join(command)}", *reasons, sep="\n    ")
    for command in skipped:
        print(f"not composed: {' '.join(command)}")
    print(
        ", ".join(f"{count} {verdict}" for verdict, count in counts.items()), f"{len(skipped)} not composed", sep=", "
    )
    return int(counts["different"] > 0)


if __name__ == "__main__":
    sys.exit(main())
