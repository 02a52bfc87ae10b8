"""What projections cannot show is refused before the first step, or told in a warning."""

import lightning
import pytest
from torch.nn import functional as F
from torch.utils.data import DataLoader

from tests.callbacks.conftest import (
    Body,
    Module,
    Pictures,
    Stream,
    fit,
    hooks_of,
    in_batches_of_its_own,
    small_chain,
)
from zfscope.callbacks import Projections


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"maps": 0}, "Projections: maps=0 and top=9 must be 1 or more"),
        ({"top": 0}, "Projections: maps=6 and top=0 must be 1 or more"),
        ({"unpooling": "overwrit"}, "Projections: unpooling='overwrit' must be sum or overwrite"),
        ({"when": 0}, "0 must be a whole number n"),
    ],
)
def test_numbers_and_words_that_cannot_be_are_refused_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        Projections(**options)


class LongStream(Stream):
    def __len__(self):
        return 4


class ByName(Pictures):
    def __getitem__(self, index):
        return {"image": self.images[index], "label": index % 2}


class ValidatingByName(Module):
    def validation_step(self, batch, _):
        self(batch["image"])


class WithoutForward(Module):
    forward = lightning.LightningModule.forward

    def training_step(self, batch, _):
        return F.cross_entropy(self.network(batch[0]), batch[1])

    def validation_step(self, batch, _):
        self.network(batch[0])


def grey():
    images = Pictures(channels=1)
    return Module(Body(channels=1), images, images)


def validated_on(validation):
    return lambda: Module(validation=validation)


@pytest.mark.parametrize(
    ("make", "options", "error", "message"),
    [
        (Module, {"layers": ["conv9"]}, ValueError, "Module has no submodule 'conv9'; there are network"),
        (lambda: Module(small_chain()), {"layers": ["conv9"]}, ValueError, "no layer 'conv9'; .* conv1, conv2, fc3"),
        (lambda: Module(small_chain()), {"layers": []}, ValueError, "layers names no layer; the layers are conv1"),
        (validated_on(Stream()), {}, ValueError, r"a validation data set with dataset\[index\] and a length"),
        (validated_on(LongStream()), {}, ValueError, r"a validation data set with dataset\[index\] and a length"),
        (validated_on(DataLoader(Pictures(), 4, shuffle=True)), {}, ValueError, "use a loader without shuffling"),
        (validated_on(in_batches_of_its_own(Pictures())), {}, ValueError, "use a loader without shuffling"),
        (lambda: ValidatingByName(validation=ByName()), {}, ValueError, "need validation data .* but got dict"),
        (lambda: Module(Body(activation=F.gelu)), {}, ValueError, "the rule 'deconvnet' is not defined for gelu"),
        (grey, {}, ValueError, r"square images in colour.* \(1, 21, 21\)"),
        (Module, {"unpooling": "overwrite"}, ValueError, "unpooling='overwrite' needs a chain"),
        (WithoutForward, {}, NotImplementedError, "missing the required .forward. function"),
    ],
    ids=["submodule", "layer", "no layer", "stream", "long stream", "shuffled", "own batches", "dict", "gelu", "grey",
         "overwrite", "no forward"],
)  # fmt: skip
def test_what_cannot_be_shown_is_refused_in_a_line_before_the_first_step(tmp_path, make, options, error, message):
    module = make()

    with pytest.raises(error, match=message) as caught:
        fit(tmp_path, module, Projections(**options), num_sanity_val_steps=2)

    assert module.global_step == 0 and len(str(caught.value).splitlines()) == 1
    assert not hooks_of(module) and not (tmp_path / "figures").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation": Stream()}, r"set with dataset\[index\] and a length"),
        ({"network": Body(activation=F.gelu)}, "for gelu"),
    ],
    ids=["stream", "gelu"],
)
def test_what_lightning_shows_late_is_refused_before_the_pass(tmp_path, options, message):
    class Counting(Module):
        def validation_step(self, batch, batch_idx):
            passed.append(batch_idx)

    passed = []

    with pytest.raises(ValueError, match=message):
        fit(tmp_path, Counting(**options), Projections(), max_epochs=2, check_val_every_n_epoch=2)

    assert passed == []


def test_an_unknown_layer_is_refused_where_nothing_is_validated(tmp_path):
    module = Module(small_chain())

    with pytest.raises(ValueError, match="no layer 'conv9'"):
        fit(tmp_path, module, Projections(["conv9"]), limit_val_batches=0)

    assert module.global_step == 0


class Scaling(Module):
    """Changes images between loader and network, as augmentation on a GPU does."""

    def on_after_batch_transfer(self, batch, _):
        return [batch[0] * 3, *batch[1:]]


@pytest.mark.parametrize("make", [Scaling, lambda: Module(validation=Pictures(noise=3.0))], ids=["scaled", "random"])
def test_images_that_do_not_come_again_as_they_were_are_told_of(tmp_path, make):
    with pytest.warns(UserWarning, match="an image read again .* does not give the activations that it won with"):
        fit(tmp_path, make(), Projections())


def test_fewer_images_than_the_top_wants_are_told_of_once(tmp_path):
    with pytest.warns(UserWarning, match="Projections: top=99, but validation has .* images: all of them are taken"):
        fit(tmp_path, Module(), Projections(top=99))


def test_a_validation_that_runs_no_layer_is_told_of(tmp_path):
    class Elsewhere(Module):
        def validation_step(self, batch, _):
            pass

    with pytest.warns(UserWarning, match="validation ran none of network.conv1, network.conv2; there is nothing"):
        fit(tmp_path, Elsewhere(), Projections())

    assert not (tmp_path / "figures").exists()
