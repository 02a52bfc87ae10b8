"""Which optimiser a config names, and how each moves the weights."""

import warnings

import lightning
import pytest
import torch
from torch import nn

from tests.training.conftest import MODEL, StopAt
from zfscope.networks.build import build_network
from zfscope.training.optimisers import optimizer_of, revive_, warn_of_decay
from zfscope.training.spec import OptimConfig


class Dying(lightning.Callback):
    """One map of conv1 is dead from the start."""

    def on_train_start(self, trainer, module):
        if not trainer.global_step:
            module.network.conv1.conv.bias.data[4] = -100


TWO = {**MODEL, "conv2": {"maps": 6, "kernel_size": 3, "padding": 1}}


def test_the_optimiser_is_the_one_that_the_config_names():
    weights = [torch.nn.Parameter(torch.ones(2))]

    sgd = optimizer_of(weights, OptimConfig(lr=0.2, momentum=0.8, nesterov=True, weight_decay=0.1))
    adamw = optimizer_of(weights, OptimConfig(name="adamw", lr=0.2, weight_decay=0.1))

    assert isinstance(sgd, torch.optim.SGD) and isinstance(adamw, torch.optim.AdamW)
    assert [sgd.defaults[name] for name in ("lr", "momentum", "nesterov", "weight_decay")] == [0.2, 0.8, True, 0.1]
    assert [adamw.defaults[name] for name in ("lr", "weight_decay")] == [0.2, 0.1]


def test_muon_moves_filters_of_features_by_orthogonal_matrices_and_all_else_by_adamw():
    network = build_network(TWO, 3, 20).double()
    before = {name: weight.detach().clone() for name, weight in network.named_parameters()}
    optimizer = optimizer_of(network.parameters(), OptimConfig(name="muon", lr=0.1, weight_decay=0.0))
    network(torch.randn(5, 3, 20, 20, dtype=torch.float64)).square().sum().backward()
    optimizer.step()

    moved = {name: (weight - before[name]).detach() for name, weight in network.named_parameters()}
    singular = torch.linalg.svdvals(moved["conv2.conv.weight"].flatten(1))
    # Near orthogonal of 6 x 54, of a step of AdamW's size: 0.2 sqrt(54) times the rate, where three steps of
    # Newton-Schulz, written out for each singular value, have brought a large one near 1 and left a small one small.
    gradient = torch.linalg.svdvals(network.conv2.conv.weight.grad.flatten(1))
    expected = gradient / gradient.square().sum().sqrt()
    for a, b, c in ((4.0848, -6.8946, 2.9270), (3.9505, -6.3029, 2.6377), (3.7418, -5.5913, 2.3037)):
        expected = a * expected + b * expected**3 + c * expected**5
    expected = expected.sort(descending=True).values * 0.1 * 0.2 * 54**0.5
    torch.testing.assert_close(singular, expected, rtol=0, atol=0.04 * float(expected[0]))
    assert 0.6 < float(singular[0]) / (0.1 * 0.2 * 54**0.5) < 1.25
    others = {name: move for name, move in moved.items() if name != "conv2.conv.weight"}
    assert "conv1.conv.weight" in others and "fc8.linear.weight" in others
    for name, move in others.items():  # the first step of AdamW is the rate, by the sign of the gradient
        gradient = network.get_parameter(name).grad
        large = gradient.abs() > 1e-4
        torch.testing.assert_close(move[large], -0.1 * gradient[large].sign(), rtol=1e-3, atol=0)


def test_muon_has_the_decay_momentum_and_rate_of_its_config():
    network = build_network(TWO, 3, 20)
    optim = OptimConfig(name="muon", lr=0.25, momentum=0.5, nesterov=True, weight_decay=0.125)

    filters, others = optimizer_of(network.parameters(), optim).param_groups

    for group in (filters, others):
        assert [group[key] for key in ("lr", "momentum", "nesterov", "weight_decay")] == [0.25, 0.5, True, 0.125]
    assert [weight.shape for weight in filters["params"]] == [network.conv2.conv.weight.shape]
    assert len(filters["params"]) + len(others["params"]) == len(list(network.parameters()))


def test_muon_without_filters_of_features_is_refused():
    with pytest.raises(ValueError, match=r"optim\.name=muon is for networks of two conv layers or more"):
        optimizer_of(build_network(MODEL, 3, 20).parameters(), OptimConfig(name="muon"))


def test_a_training_by_muon_resumes_exactly_with_another_rate(fit, tmp_path):
    optim, now = ({"name": "muon", "lr": rate, "schedule": {"name": "cosine"}} for rate in (0.02, 0.01))
    _, whole = fit(tmp_path / "whole", optim=optim, model=TWO)

    for folder, rates in (("run", optim), ("changed", now)):
        with pytest.raises(SystemExit):
            fit(tmp_path / folder, optim=optim, model=TWO, callbacks=[StopAt(5)])
        _, resumed = fit(tmp_path / folder, tmp_path / folder / "checkpoints/last.ckpt", optim=rates, model=TWO)
        same = [
            torch.equal(weight, expected)
            for weight, expected in zip(resumed.network.parameters(), whole.network.parameters(), strict=True)
        ]
        assert all(same) == (folder == "run")


class Maps(nn.Module):
    """Three maps of one pixel each: alive, one that some images activate, one that none does."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 3, 1), nn.Linear(3, 2)
        with torch.no_grad():
            self.conv.weight[:] = torch.tensor([1.0, 1.0, -1.0]).view(3, 1, 1, 1)
            self.conv.bias[:] = torch.tensor([0.5, -1.5, -0.25])

    def forward(self, images):
        return self.fc(self.conv(images).relu().flatten(1))


def test_the_bias_of_a_map_that_no_image_activates_rises_until_one_does():
    network, images = Maps(), torch.tensor([1.0, 2.0]).view(2, 1, 1, 1)
    before, steps = network.conv.bias.detach().clone(), 0

    while not network.conv(images)[:, 2].gt(0).any():  # -1.25 where it is strongest
        network.zero_grad()
        network(images)[:, 0].sum().backward()
        revive_(network, 0.3)
        steps += 1
    network.zero_grad()
    network(images)[:, 0].sum().backward()
    revive_(network, 0.3)

    assert steps == 5
    assert network.conv.bias.tolist() == pytest.approx([*before[:2].tolist(), before[2].item() + 5 * 0.3])


def test_a_loss_without_gradient_revives_nothing():
    network = Maps()
    before = network.conv.bias.detach().clone()

    (0 * network(torch.ones(2, 1, 1, 1))).sum().backward()
    revive_(network, 0.5)

    assert torch.equal(network.conv.bias, before)


@pytest.mark.parametrize("frozen", ["weight", "bias"])
def test_what_has_no_gradient_is_left_as_it_is(frozen):
    network = Maps()
    network.conv.get_parameter(frozen).requires_grad_(False)
    before = network.conv.bias.detach().clone()

    network(torch.ones(2, 1, 1, 1)).sum().backward()
    revive_(network, 0.5)

    assert network.conv.bias.tolist() == pytest.approx(
        [0.5, *(before[1:] + (0.5 if frozen == "weight" else 0)).tolist()]
    )


def test_a_training_revives_by_its_share_of_the_rate_and_resumes_exactly(fit, tmp_path):
    def dead(folder, revive, **more):
        optim = {"lr": 0.1, "momentum": 0.0, "weight_decay": 0.0, "schedule": {"name": "constant"}, "revive": revive}
        return fit(tmp_path / folder, epochs=1, optim=optim, callbacks=[Dying(), *more.pop("callbacks", ())], **more)

    (_, none), (trainer, half) = dead("none", 0.0), dead("half", 0.5)
    with pytest.raises(SystemExit):
        dead("run", 0.5, callbacks=[StopAt(2)])
    (_, resumed) = dead("run", 0.5, last=tmp_path / "run" / "checkpoints" / "last.ckpt")

    biases = [one.network.conv1.conv.bias for one in (none, half, resumed)]
    assert biases[0][4].item() == -100  # no gradient and no decay: where it was
    assert trainer.global_step > 2
    assert biases[1][4].item() == pytest.approx(-100 + trainer.global_step * 0.5 * 0.1, abs=1e-4)
    assert torch.equal(biases[1], biases[2])


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"name": "sgd", "lr": 0.03, "momentum": 0.9, "weight_decay": 5e-4}, None),
        ({"name": "muon", "lr": 1e-3, "momentum": 0.95, "weight_decay": 2.0}, None),
        ({"name": "sgd", "lr": 1e-3, "momentum": 0.95, "weight_decay": 2.0}, "4 %"),
        ({"name": "adamw", "lr": 0.01, "momentum": 0.95, "weight_decay": 2.0}, "2 %"),
    ],
)
def test_a_decay_that_takes_all_weights_away_is_told(values, told):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_decay(OptimConfig(**values))

    assert [f"takes {told} off all weights" in str(one.message) for one in caught] == ([True] if told else [])
