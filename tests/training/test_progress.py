import re
from types import SimpleNamespace

import pytest

from zfscope.training.progress import EpochBar, EpochLines, build_progress


def test_a_log_gets_one_line_an_epoch_with_errors_and_the_time_left(fit, tmp_path, capsys):
    assert isinstance(build_progress(), EpochLines)  # here nobody watches

    fit(tmp_path, epochs=2, callbacks=[EpochLines()])

    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["epoch 1/2", "epoch 2/2"]
    numbers = r"train/epoch_loss \d\.\d{3}, train/top1_error \d+\.\d %, val/loss \d\.\d{3}, val/top1_error \d+\.\d %"
    for line in lines:
        assert re.fullmatch(rf"epoch ./2: {numbers}, \d+\.\d min, \d+\.\d min left", line), line


@pytest.mark.parametrize(("most", "told"), [(22, "Epoch 3/22"), (-1, "Epoch 3"), (None, "Epoch 3")])
def test_the_bar_counts_epochs_from_1(monkeypatch, most, told):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    bar = build_progress()
    bar._trainer = SimpleNamespace(max_epochs=most)

    assert isinstance(bar, EpochBar) and bar._get_train_description(2).strip() == told


def test_a_line_does_not_repeat_the_errors_of_an_earlier_validation(fit, tmp_path, capsys):
    fit(tmp_path, epochs=4, callbacks=[EpochLines()], check_val_every_n_epoch=2)

    lines = capsys.readouterr().out.splitlines()
    assert ["val/top1_error" in line for line in lines] == [False, True, False, True]
    assert all("train/top1_error" in line for line in lines)
