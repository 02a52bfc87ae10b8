"""The mutants of both lists are still there to be put in."""

import ast
import json

import pytest

from tests.conftest import ROOT
from tests.scripts.mutants import LISTS, locate, mutated, renamed


@pytest.mark.parametrize("name", LISTS)
def test_every_mutant_finds_its_place_and_gives_another_program(name):
    mutants = json.loads(LISTS[name].read_text())

    for mutant in (one for one in mutants if "gone" not in renamed().get(str(one["number"]), {})):
        place = locate(ROOT, mutant)

        assert place is not None, (
            f"{mutant['file']}: no {mutant['statement']!r} any more; say in renamed.json where it is"
        )
        path, node, replacement = place
        assert ast.unparse(ast.parse(replacement)) != ast.unparse(node)
        ast.parse(mutated(path, node, replacement))
