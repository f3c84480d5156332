"""Refits that all change a loss alike: the verdict says that there is no statistic, and why."""

import json

from ifloo.store import Layout
from tests.cli.running import done, small
from tests.cli.test_pipeline import lines, read_json, results


def test_controls_that_change_the_loss_alike_cost_no_report(copied):
    layout = Layout(results(copied))
    path, controls = layout.loo_losses(8), read_json(layout.manifest)["loo"]["recorded"]["random_ids"]
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    base = next(row["loss"] for row in rows if row["id"] == -1)
    for row in rows:
        if row["id"] in controls:
            row["loss"] = base
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for command in ("report", "loo"):
        said = done(small(copied, command)).out
        assert "  random             -  all actual changes are 0 nats\n" in said
        found = read_json(layout.verdict)["tests"]
        assert found["8"]["random"] is None
        assert found["8"]["top_k"]["n_refits"] == 4
        assert found["0"]["random"]["n_refits"] == len(controls)
    assert len(lines(path)) == len(rows)
