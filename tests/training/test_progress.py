import re

from zfscope.training.progress import EpochLines, build_progress


def test_a_log_gets_one_line_an_epoch_with_errors_and_the_time_left(fit, tmp_path, capsys):
    assert isinstance(build_progress(), EpochLines)  # here nobody watches

    fit(tmp_path, epochs=2, callbacks=[EpochLines()])

    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["epoch 1/2", "epoch 2/2"]
    numbers = r"train/epoch_loss \d\.\d{3}, train/top1_error \d+\.\d, val/loss \d\.\d{3}, val/top1_error \d+\.\d"
    for line in lines:
        assert re.fullmatch(rf"epoch ./2: {numbers}, \d+\.\d min, \d+\.\d min left", line), line
