"""What is printed on screen: the network before training, results after it, a sweep's jobs at its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from torch import nn

from zfscope.networks.chain import ConvNet
from zfscope.networks.geometry import field_of
from zfscope.networks.network import Network


def network_table(network: Network) -> Table:
    """Each layer with its map sizes, receptive field and parameters; Source: Zeiler & Fergus (2014), Fig. 3."""
    table = Table(title=f"{parameters_of(network):,} parameters, input {network.image_size}x{network.image_size} px")
    table.add_column("layer")
    for heading in ("filters", "map sizes", "receptive field / stride, px", "parameters"):
        table.add_column(heading, justify="right")
    for name in network.layers:
        module = network.get_submodule(name) if isinstance(network, ConvNet) else network.body.get_submodule(name)
        cells = _cells(network, name) if isinstance(network, ConvNet) else ("", "", "")
        table.add_row(name, *cells, f"{parameters_of(module):,}")
    return table


def results_table(metrics: Mapping[str, Mapping[str, Any]], title: str) -> Table:
    """Measured numbers, the paper's beside them where it has one."""
    paper = any(metric.get("paper") is not None for metric in metrics.values())
    table = Table(title=title)
    table.add_column("metric")
    table.add_column("value", justify="right")
    if paper:
        table.add_column("paper", justify="right")
    for name, metric in metrics.items():
        digits = 0 if isinstance(metric["value"], int) else 2
        value = f"{metric['value']:.{digits}f} {metric['unit']}"
        reference = "" if metric.get("paper") is None else f"{metric['paper']:.1f} {metric['unit']}"
        table.add_row(name, value, *([reference] if paper else []))
    return table


def sweep_table(jobs: Sequence[Mapping[str, Any]]) -> Table:
    """One row a job: what sets it apart, error, map sizes, parameters, minutes, state with its cause."""
    overrides = [job.get("conditions", {}).get("overrides", []) for job in jobs]
    shared = set.intersection(*map(set, overrides)) if len(jobs) > 1 else set()
    table = Table(title=f"{len(jobs)} jobs")
    table.add_column("job", justify="right")
    table.add_column("overrides", overflow="fold")
    table.add_column("error %", justify="right")
    table.add_column("map sizes", overflow="fold")
    table.add_column("parameters", justify="right")
    table.add_column("minutes", justify="right")
    table.add_column("state", overflow="fold")
    for number, job in enumerate(jobs):
        conditions, metrics = job.get("conditions", {}), job.get("metrics", {})
        known = (metrics.get(f"{part}/top1_error") for part in ("test", "val"))
        error = next((metric["value"] for metric in known if metric is not None), None)
        parameters, seconds = conditions.get("parameters"), conditions.get("seconds")
        state = job.get("state", "no results")
        table.add_row(
            str(number),
            " ".join(each for each in overrides[number] if each not in shared),
            "" if error is None else f"{error:.2f}",
            "/".join(map(str, conditions.get("map_sizes", []))),
            "" if parameters is None else f"{parameters:,}",
            "" if seconds is None else f"{seconds / 60:.1f}",
            state if not job.get("cause") else f"{state}: {job['cause']}",
        )
    return table


def parameters_of(module: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def map_sizes_of(network: Network) -> list[int]:
    """Height of the map above each filtering and pooling, bottom to top; empty for a network that is no chain."""
    return list(network.sizes.values()) if isinstance(network, ConvNet) else []


def _cells(network: ConvNet, name: str) -> tuple[str, str, str]:
    spec = network.spec[name]
    if (name, "conv") not in network.sizes:
        return "", str(network.get_submodule(name).linear.out_features), ""
    conv, pool = network.sizes[(name, "conv")], network.sizes.get((name, "pool"))
    steps = network.steps(name)
    unit = field_of([step for step in steps if (step.layer, step.kind) != (name, "pool")])
    filters = f"{spec.maps} of {spec.kernel_size}x{spec.kernel_size} / {spec.stride}"
    fields = f"{unit.size} / {unit.stride}"
    if pool is not None:
        pooled = field_of(steps)
        fields += f", pooled {pooled.size} / {pooled.stride}"
    return filters, f"{conv}" if pool is None else f"{conv} -> {pool}", fields
