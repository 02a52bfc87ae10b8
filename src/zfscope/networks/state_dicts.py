"""State dicts of others: read from a file, and found in it under any prefix and in any nesting.

Frameworks save a network's weights beside much else (``{"state_dict": …, "optimizer": …}``), and wrappers put a prefix
before each name: ``module.`` (DataParallel), ``_orig_mod.`` (torch.compile), ``model.``, ``net.`` (LightningModules).
"""

import argparse
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from zfscope.console import console
from zfscope.networks.archives import check_archive
from zfscope.networks.network import Network
from zfscope.networks.tensors import read_tensors
from zfscope.schema import listed, printable, shown

DEEPEST = 5  # containers in containers that are searched
OPTIONAL = "num_batches_tracked"  # counters of batch normalisation, which evaluation does not read and old files lack
AVERAGED = re.compile(r"(?<![a-z])(ema|swa|avg|average[sd]?|averaged?model|averaging|polyak)(?![a-z])", re.IGNORECASE)
# How torch's files began before version 1.6: the pickled number 0x1950a86a20f9469cfc6c.
_OLD_FORMAT = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


def read_weights(path: str | Path) -> dict[Any, Any]:
    """What a file of weights holds: safetensors, or what ``torch.save`` wrote; nothing in it is run.

    The options that timm saves beside weights, an ``argparse.Namespace``, are read and not looked at.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: Naming the file and what is wrong in it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {printable(path)}; give the path of a .safetensors or .pth file")
    with open(path, "rb") as file:
        start = file.read(len(_OLD_FORMAT))
    if path.suffix == ".safetensors" or start[8:9] == b"{":  # the header, after its length
        try:
            return safetensors.torch.load_file(path)
        except (safetensors.SafetensorError, ValueError, KeyError) as error:
            cause = shown(str(error), 200)
            raise ValueError(f"{path} is no safetensors file, or is damaged ({cause}); use another file") from None
    if start != _OLD_FORMAT:
        check_archive(path, holders=["argparse.Namespace"])
    content = read_tensors(path, holders=[argparse.Namespace])
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a dictionary of weights")
    return content


@dataclass(frozen=True)
class _Candidate:
    """Weights in a file that have all of a network's names, after one prefix."""

    place: tuple[str, ...]  # the keys that lead to their mapping
    prefix: str
    weights: dict[str, Any]  # by the network's own names, and what else has the prefix
    is_averaged: bool

    @property
    def name(self) -> str:
        return ".".join([*self.place, self.prefix.removesuffix(".")]).strip(".") or "the names without a prefix"


def find_weights(content: Mapping[Any, Any], network: Network, path: str | Path) -> dict[str, Any]:
    """A network's weights in what a file holds, by the network's own names.

    They may stand in any dictionary of the file and have any prefix before their names. Averaged weights are taken
    before others, with a printed line. Where the file has not all of the network's weights come those that come
    nearest, or else what it holds: ``check_weights`` refuses them by name.

    Raises:
        ValueError: If several different ones fit.
    """
    places = dict(_mappings(content))
    candidates = list(_candidates(places, network))
    fitting = [candidate for candidate in candidates if _fits(candidate.weights, network)] or candidates
    averaged = [candidate for candidate in fitting if candidate.is_averaged]
    chosen = _different(averaged or fitting)
    if len(chosen) > 1:
        names = listed(shown(candidate.name, 60) for candidate in chosen)
        raise ValueError(f"{path} holds several weights that fit: {names}; save those of one network alone")
    if chosen:
        others = [candidate.name for candidate in fitting if not candidate.is_averaged]
        if averaged and others:
            told = f"{printable(path)}: averaged weights are taken, {shown(chosen[0].name, 60)}"
            console.print(f"{told}, not {shown(others[0], 60)}", markup=False, highlight=False, soft_wrap=True)
        return chosen[0].weights
    return _nearest(places, network) or dict(_plain_names(content.get("state_dict", content)))


def check_weights(network: Network, weights: Mapping[str, Tensor], path: str | Path) -> None:
    """Refuse weights that are not all of this network's, or not finite.

    Raises:
        ValueError: Naming the first tensor that is missing, too many, of another shape or not finite.
    """
    own = network.state_dict()
    for name, tensor in own.items():
        if name not in weights:
            raise ValueError(f"{path} has no weights for {name}; it holds another network")
        if not isinstance(weights[name], Tensor):
            raise ValueError(f"{path}: {name} is a {type(weights[name]).__name__}, not a tensor; it holds no weights")
        if tuple(weights[name].shape) != tuple(tensor.shape):
            raise ValueError(
                f"{path}: {name} has shape {tuple(weights[name].shape)}, but this network's is {tuple(tensor.shape)}; "
                "use the model, data.crop and number of classes that it was trained with"
            )
        if not bool(torch.isfinite(weights[name]).all()):
            raise ValueError(f"{path}: {name} holds NaN or infinity; use an earlier checkpoint of that run")
    unknown = sorted(set(weights) - set(own))
    if unknown:
        raise ValueError(f"{path} holds {shown(unknown[0], 100)}, which this network has not; it holds another network")


def tensor_mappings(content: Mapping[Any, Any]) -> list[dict[str, Tensor]]:
    """The dictionaries in a file that hold tensors by name, averaged ones first, then the largest first."""
    found = [
        (place, {name: value for name, value in entries.items() if isinstance(value, Tensor)})
        for place, entries in _mappings(content)
    ]
    found = [(place, entries) for place, entries in found if entries]
    return [entries for _, entries in sorted(found, key=lambda pair: (not _is_averaged(*pair), -len(pair[1])))]


def _is_averaged(place: tuple[str, ...], _: Any = None) -> bool:
    return AVERAGED.search(_words(".".join(place))) is not None


def _words(name: str) -> str:
    """A name whose words ``_`` and capitals part, with points between them: ``model_ema``, ``modelEMA``."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])|_", ".", name)


def _mappings(content: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """All dictionaries in a file by the keys that lead to them, without torch.compile's part of their names."""
    if isinstance(content, Mapping) and len(place) <= DEEPEST:
        yield place, _plain_names(content)
        for key, value in content.items():
            if isinstance(key, str):
                yield from _mappings(value, (*place, key))


def _plain_names(entries: Any) -> dict[str, Any]:
    if not isinstance(entries, Mapping):
        return {}
    named = {name: value for name, value in entries.items() if isinstance(name, str)}
    plain = {".".join(part for part in name.split(".") if part != "_orig_mod"): value for name, value in named.items()}
    return plain if len(plain) == len(named) else named


def _forms(network: Network) -> list[dict[str, str]]:
    """The names that a network's weights may have in a file, with its own: these, and those of a module it wraps."""
    own = list(network.state_dict())
    forms = [{name: name for name in own}]
    if own and all(name.startswith("body.") for name in own):
        forms.append({name.removeprefix("body."): name for name in own})
    return forms


def _candidates(places: Mapping[tuple[str, ...], Mapping[str, Any]], network: Network) -> Iterator[_Candidate]:
    forms, own, seen = _forms(network), list(network.state_dict()), set()
    for place, entries in places.items():
        # Lightning puts the average in the place of the weights, and these aside.
        replaced = place[-1:] == ("state_dict",) and (*place[:-1], "current_model_state") in places
        found: list[tuple[str, dict[str, Any]]] = []
        for form in forms:
            needed = [name for name in form if not name.endswith(OPTIONAL)]
            for prefix in _prefixes(entries, needed[:1]):
                if (place, prefix + needed[0]) not in seen and all(prefix + name in entries for name in needed):
                    seen.add((place, prefix + needed[0]))
                    found.append((prefix, _counted(_renamed(entries, prefix, form), own)))
        found += _in_order(entries, own) if network.spec else []
        for prefix, weights in found:
            yield _Candidate(place, prefix, weights, replaced or _is_averaged((*place, prefix)))


def _counted(weights: dict[str, Any], own: Sequence[str]) -> dict[str, Any]:
    """Weights with counters at 0 where an old file has none."""
    counters = (name for name in own if name.endswith(OPTIONAL))
    return {name: torch.zeros((), dtype=torch.int64) for name in counters} | weights


def _prefixes(entries: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """What stands before one of ``names`` in names of entries."""
    found = (entry.removesuffix(name) for name in names for entry in entries if entry.endswith(name))
    return list(dict.fromkeys(prefix for prefix in found if not prefix or prefix.endswith(".")))


def _renamed(entries: Mapping[str, Any], prefix: str, form: Mapping[str, str]) -> dict[str, Any]:
    within = {name.removeprefix(prefix): value for name, value in entries.items() if name.startswith(prefix)}
    return {form.get(name, name): value for name, value in within.items()}


def _in_order(entries: Mapping[str, Any], own: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    """A chain's weights under the names of torchvision or pytorchcv, by their order from the pixels up."""
    starts = (re.match(r"((?:.*?\.)?)features\.", name) for name in entries)
    found = []
    for prefix in dict.fromkeys(start[1] for start in starts if start):
        within = {name.removeprefix(prefix): value for name, value in entries.items() if name.startswith(prefix)}
        known = all(name.startswith(("features.", "classifier.", "output.")) for name in within)
        if known and len(within) == len(own):
            found.append((prefix, dict(zip(own, within.values(), strict=True))))
    return found


def _fits(weights: Mapping[str, Any], network: Network) -> bool:
    """Whether the shapes are the network's, but for those of the classes."""
    return all(
        network.is_of_classifier(name) or getattr(weights.get(name), "shape", None) == tensor.shape
        for name, tensor in network.state_dict().items()
    )


def _different(candidates: Sequence[_Candidate]) -> list[_Candidate]:
    """The candidates without those that hold the numbers of one before them."""

    def same(one: _Candidate, other: _Candidate) -> bool:
        if one.weights.keys() != other.weights.keys():
            return False
        pairs = zip(one.weights.values(), (other.weights[name] for name in one.weights), strict=True)
        return all(isinstance(a, Tensor) and isinstance(b, Tensor) and torch.equal(a, b) for a, b in pairs)

    kept: list[_Candidate] = []
    for candidate in candidates:
        if not any(same(candidate, other) for other in kept):
            kept.append(candidate)
    return kept


def _nearest(places: Mapping[tuple[str, ...], Mapping[str, Any]], network: Network) -> dict[str, Any]:
    """The weights that have most of the network's names; empty where none has any."""
    best: tuple[int, dict[str, Any]] = (0, {})
    for entries in places.values():
        for form in _forms(network):
            for prefix in _prefixes(entries, [*form][:: max(1, len(form) // 20)]):
                count = sum(prefix + name in entries for name in form)
                if count > best[0]:
                    best = count, _renamed(entries, prefix, form)
    return best[1]
