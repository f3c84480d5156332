"""Groups removed at once, and fits from other seeds, beside the verdict on single removals."""

import numpy as np
import pytest

from ifloo.cli import tables
from ifloo.errors import InputError
from ifloo.store import GroupFile, GroupRow, Layout, LossFile, LossRow
from ifloo.verdict import Verdict, compare
from tests.verdict.results import IDS, REMOVED, SCORES, Results, T

TOP = REMOVED[:6].tolist()
GROUPS = {"top_10pct": IDS[[3, 5, 8, 30]].tolist(), "random_10pct": IDS[[1, 2, 9, 20]].tolist()}
LOSSES = {"top_10pct": 0.75, "random_10pct": 0.6999}


def add_groups(results):
    file = GroupFile(results.layout.group_losses(T))
    for name, ids in GROUPS.items():
        file.add(GroupRow(name, ids, LOSSES[name], 1e-11, 2.0))


@pytest.mark.parametrize("removal", ["drop", "zero_weight"])
def test_a_group_is_predicted_by_the_sum_of_its_samples(tmp_path, removal, capsys):
    results = Results(Layout(tmp_path), removal=removal).write()
    add_groups(results)
    one = compare(results.layout, T, TOP)
    mean = float(np.mean(SCORES)) if removal == "drop" else 0.0
    expected = [
        {
            "id": name,
            "n": 4,
            "predicted": pytest.approx(-float((SCORES[np.isin(IDS, ids)].astype(float) - mean).sum()), rel=1e-9),
            "actual": LOSSES[name] - results.loss,
        }
        for name, ids in sorted(GROUPS.items())
    ]
    assert one.to_json()["groups"] == expected
    tables.verdict(Verdict({T: one}))
    lines = capsys.readouterr().out.splitlines()
    at = lines.index("  removed at once    n  predicted     actual        nats")
    first = one.groups[0]
    assert lines[at + 1] == f"  random_10pct       4  {first.predicted:+.4e}   {first.actual:+.4e}"
    assert len(lines) == at + 3


def test_a_group_of_other_data_is_refused(tmp_path):
    results = Results(Layout(tmp_path)).write()
    GroupFile(results.layout.group_losses(T)).add(GroupRow("top_1pct", [int(IDS[-1]) + 1], 0.7, 0.0, 1.0))
    with pytest.raises(InputError) as caught:
        compare(results.layout, T, TOP)
    assert str(caught.value) == (
        f"Test {T}: refits of ids [{int(IDS[-1]) + 1}] have no score: they are of other data.\n"
        "  Run `ifloo influence` and `ifloo loo` on the same data."
    )


def test_other_seeds_stand_beside_the_noise_floor(tmp_path, capsys):
    results = Results(Layout(tmp_path)).write()
    for draw, loss in enumerate((0.9, 0.6), start=1):
        LossFile(results.layout.seed_losses(T), "draw").add(LossRow(-1, loss, extra={"draw": draw}))
    one = compare(results.layout, T, TOP)
    assert one.seed_spread == pytest.approx(np.std([0.7, 0.9, 0.6], ddof=1))
    assert one.to_json()["seed_spread"] == one.seed_spread
    tables.verdict(Verdict({T: one}))
    said = "noise floor 1.0e-06 nats (another seed changes this loss by about 1.5e-01), 0 refits flagged\n"
    assert said in capsys.readouterr().out
