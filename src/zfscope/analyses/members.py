"""The members of an ensemble: opened, checked against each other, and named by architecture."""

import glob
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zfscope.console import progress
from zfscope.networks.checkpoints import find_checkpoint, load_network, network_from_checkpoint, read_checkpoint
from zfscope.networks.imagenet import same_classes
from zfscope.networks.network import Network
from zfscope.networks.public import is_zoo_name, zoo_config
from zfscope.networks.spec import ModelConfig
from zfscope.protocols.features import fingerprint
from zfscope.runs import natural
from zfscope.schema import check, listed, plain

ALIKE = "members of an ensemble share their classes and the order of these"


@dataclass(frozen=True)
class Member:
    """A network of an ensemble."""

    path: str  # where it came from, as ``load_network`` takes it
    name: str  # what sets its path apart from those of the others
    network: Network  # in eval mode, with its own preprocessing
    config: Mapping[str, Any]  # its run's config; holds at least ``model``
    digest: str  # hash of layers, weights and preprocessing


def open_members(checkpoint: str | Sequence[str], partial: bool = False) -> list[Member]:
    """The networks that ``checkpoint=`` names: what ``load_network`` takes, patterns (``outputs/six/*``) or a list.

    A pattern passes over files that are no checkpoints, as a sweep's multirun.yaml; ``partial`` goes on without members
    that cannot be read. Refused by name: those that cannot be read, two that are the same network, and one whose
    classes or their order are not those of the first.
    """
    sources = member_sources(checkpoint)
    members, errors = [], {}
    for source, name in progress(zip(sources, _names(sources), strict=True), "Opening members", len(sources)):
        try:
            member = _open(source, name)
        except (FileNotFoundError, ValueError) as error:
            errors[source] = error
            continue
        for other in members:
            if other.digest == member.digest:
                raise ValueError(
                    f"{other.path} and {source} are the same network; a member counts once, leave one of them out"
                )
        if members:
            _check_alike(members[0], member)
        members.append(member)
    if errors and not (partial and members):
        way_out = "; analysis.partial=true goes on without" if members else ""
        cause = next(iter(errors.values()))
        raise ValueError(
            f"{len(errors)} of {len(sources)} members cannot be read: {listed(errors, 12)} ({cause}){way_out}"
        )
    return members


def architectures(members: Sequence[Member]) -> list[str]:
    """What to call each member's architecture: its model's name; with what differs, where two of one name do.

    Two members are of one architecture if all of their ``model`` and the size of their input are the same.
    """
    configs = [
        check(ModelConfig, member.config["model"]).model_dump(mode="json") | {"image_size": member.network.image_size}
        for member in members
    ]
    names = []
    for config in configs:
        differing = _differences([other for other in configs if other["name"] == config["name"]])
        values = (f"{key}={json.dumps(_value(config, key))}" for key in differing)
        names.append(" ".join([config["name"], *values]))
    return names


def member_sources(checkpoint: str | Sequence[str]) -> list[str]:
    """The checkpoints that ``checkpoint=`` names, patterns resolved."""
    sources = []
    for text in (checkpoint,) if isinstance(checkpoint, str) else checkpoint:
        parts = Path(text).parts
        magic = [number for number, part in enumerate(parts) if re.search(r"[*?[]", part)]
        if not magic or Path(text).exists():
            sources.append(text)
            continue
        # What follows the last wildcard is asked of every folder that matches: outputs/six/*/last
        end = magic[-1] + 1
        entries = sorted(map(Path, glob.glob(str(Path(*parts[:end])))), key=natural)
        if end < len(parts):
            matches = [entry.joinpath(*parts[end:]) for entry in entries if not entry.is_file()]
        else:
            matches = [entry for entry in entries if not entry.is_file() or entry.suffix == ".ckpt"]
        if not matches:
            raise FileNotFoundError(
                f"checkpoint={text} matches no run folder and no .ckpt file; give a pattern of them, as outputs/six/*"
            )
        sources += map(str, matches)
    return sources


def check_prepares(network: Network, source: str) -> None:
    """Refuse a network that does not say how its images are prepared."""
    if network.preprocessing is None:
        raise ValueError(f"{source} does not tell how its images are prepared; use a checkpoint of a run")


def _names(sources: Sequence[str]) -> list[str]:
    """The paths without the folders that all of them share."""
    parts = [Path(source).parts for source in sources]
    shared = 0
    while all(len(path) > shared + 1 and path[shared] == parts[0][shared] for path in parts):
        shared += 1
    return ["/".join(path[shared:]) for path in parts]


def _open(source: str, name: str) -> Member:
    if is_zoo_name(source):
        network, config = load_network(source), {"model": zoo_config(source)}
    else:
        path = find_checkpoint(source)
        content = read_checkpoint(path)
        network = network_from_checkpoint(content, path).eval()
        state = content["zfscope"]
        config = {**(state.get("config") or {}), "model": state["model"]}
    check_prepares(network, source)
    network.check_head()
    return Member(source, name, network, plain(config), fingerprint(network))


def _check_alike(first: Member, member: Member) -> None:
    """Refuse a member whose classes or their order are not those of the first."""
    counts = first.network.num_classes, member.network.num_classes
    if counts[0] != counts[1]:
        raise ValueError(f"{member.path} tells {counts[1]} classes apart, {first.path} tells {counts[0]}; {ALIKE}")
    theirs, own = first.network.classes, member.network.classes
    if theirs is None or own is None or same_classes(theirs, own):
        return
    if set(theirs) == set(own):
        number = next(number for number, (one, other) in enumerate(zip(theirs, own, strict=True)) if one != other)
        raise ValueError(
            f"{member.path} has the classes of {first.path} in another order: number {number} is {own[number]!r}, "
            f"not {theirs[number]!r}; {ALIKE}"
        )
    raise ValueError(
        f"{member.path} has other classes than {first.path}: it lacks {listed(sorted(set(theirs) - set(own)))}, "
        f"it adds {listed(sorted(set(own) - set(theirs)))}; {ALIKE}"
    )


def _differences(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Keys, such as ``conv3.maps``, at which the configs are not all the same."""
    keys: list[str] = []
    for key, first in configs[0].items():
        values = [config[key] for config in configs]
        if all(isinstance(value, Mapping) for value in values):
            keys += [f"{key}.{inner}" for inner in _differences(values)]
        elif any(value != first for value in values):
            keys.append(key)
    return keys


def _value(config: Mapping[str, Any], key: str) -> Any:
    for part in key.split("."):
        config = config[part]
    return config
