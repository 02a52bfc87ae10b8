"""The ledger's pages: every number, every mark, and nothing from a run that becomes markup."""

import json
import re
from html.parser import HTMLParser

from tests.report.planted import ON_PHANTOM, analysis, of_folds, training
from zfscope.report.claims import measure
from zfscope.report.ledger import fill
from zfscope.report.page import pages
from zfscope.runs import write_results


class Shape(HTMLParser):
    """Tags that open and what they point to, and the text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.words = set(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.links += [value for name, value in attributes if name in ("src", "href")]

    def handle_data(self, data):
        self.words.append(data)


EVIL = "<script>alert(1)</script>|`x`"


def written(runs, causes=None):
    written = pages(fill(runs), measure(runs), runs, causes or {}, b"png")
    return written["ledger.html"], written["ledger.md"]


def test_names_from_runs_stay_text_on_both_pages():
    run = training(EVIL, "table3_zfnet", f"model.name={EVIL}", data=EVIL, identity=None)
    named = analysis(
        EVIL, "transfer", {"gain/5/accuracy": of_folds(1, 2), "pretrained/15/accuracy": 3.0}, classes=[EVIL]
    )

    web, text = written([run, named], {EVIL: EVIL})

    assert "<script" not in web and "<script" not in text
    assert "script" not in Shape(web).tags and sum(EVIL in each for each in Shape(web).words) >= 6
    rows = [line for line in text.splitlines() if "script" in line and line.startswith("|")]
    assert rows and all(len(re.findall(r"(?<!\\)\|", row)) in (3, 4, 5, 7) for row in rows)


def test_the_web_page_stands_alone():
    web, _ = written([training("a", "table3_zfnet")])

    shape = Shape(web)
    assert not shape.tags & {"script", "link", "iframe", "object"}
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in shape.links) and "http" not in web
    assert {"#claim-10", "data:image/png;base64,cG5n"} <= set(shape.links)


def test_both_pages_show_every_number_and_mark_stand_ins():
    runs = [training(f"s{seed}", "table3_zfnet", *ON_PHANTOM, data="phantom", seed=seed) for seed in (0, 1)]
    runs += [training("own", "table3_zfnet", values={"val/top1_error_ten_crops": 37.25})]

    web, text = written(runs)

    words = " ".join(Shape(web).words)
    for number in ("0.067 ± 0.007", "81.4 ± 0.33", "38.4", "91.2", "72.6 ± 0.1"):
        assert number in words and number in text
    row = next(line for line in text.splitlines() if line.startswith("| Our model (Fig. 3) |"))
    assert "38.4<br>**37.2** val, ten crops [b]<br>*stand-in* **38.0 ± 0.0** val, ten crops, 2 seeds [a]" in row
    assert (
        "- [a] *stand-in* phantom, 6,000 training images; zfnet_mini, scale=laptop; 70 epochs; seeds 0, 1; from" in text
    )
    assert "seeds 0, 1; from {s0, s1}" in text
    assert web.count("<span class=mark>stand-in</span>") > 8


def test_runs_are_listed_with_what_they_fill_and_failures_with_their_cause():
    web, text = written([training("a", "table3_zfnet"), training("idle", "elpv")], {"gone": "failed: no memory"})

    assert "| a | training | Table 2, Table 3 |" in text and "| idle | training |  |" in text
    assert "| gone | failed: no memory |" in text and "failed: no memory" in web


def test_the_command_writes_three_pages_alike_each_time(command, tmp_path):
    for seed in range(3):
        run = training("", "table3_zfnet", *ON_PHANTOM, data="phantom", seed=seed)
        write_results(made(tmp_path / f"runs/{seed}"), run.metrics, run.conditions)
    write_results(made(tmp_path / "runs/broken"), {}, {"overrides": []}, state="failed", cause="why")

    for name in ("one", "two"):
        code, out, _ = command(
            "analyze", "analysis=ledger", "analysis.runs=[runs]", "logger=none", f"hydra.run.dir={tmp_path / name}"
        )
        assert code == 0
        assert out.splitlines()[-2:] == ["left out: runs/broken (failed: why)", f"saved in {tmp_path / name}"]

    for name in ("ledger.md", "ledger.json", "ledger.html", "figures/table3.png"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    content = json.loads((tmp_path / "one/ledger.json").read_text())
    (top1,) = [
        cell for cell in content["cells"] if (cell["table"], cell["row"], cell["column"]) == (3, "zfnet", "val_top1")
    ]
    assert top1["paper"] == 38.4 and top1["ours"][0]["n"] == 3 and top1["ours"][0]["stand_in"]
    assert len(content["cells"]) == 170 + 1 and content["numbers"]["stand_in"] == 5
    assert content["left_out"] == {"runs/broken": "failed: why"}
    metrics = json.loads((tmp_path / "one/results.json").read_text())["metrics"]
    assert metrics["numbers/stand_in"]["value"] == 5 and metrics["claims/not run"]["value"] == 10


def made(folder):
    folder.mkdir(parents=True)
    return folder
