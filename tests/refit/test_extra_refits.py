"""Refits of other kinds: small weight steps, groups, other seeds; each is made once and recorded in its own files."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import optim

from ifloo.errors import InputError
from ifloo.objective import SampleWeights
from ifloo.params import ParamSpace
from ifloo.refit import WEIGHTS, Groups, LeaveOneOut, RefitSettings, WeightSteps, groups, stepped
from ifloo.refit.execution.job import RefitRequest, RefitResult
from ifloo.refit.strategies import StackedReplicas
from ifloo.refit.strategies.base import RefitTask
from ifloo.store import NULL_ID, GroupFile, Layout, LossFile
from tests.refit.trained import N, Trained, dataset, perceptron, refitter

# Samples of these refits.

TOP = {0: [3, 17, 4, 9], 8: [17, 20, 3, 1]}


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, []),
        (1, [3]),
        (2, [3, 11]),
        (5, [3, 17, 20, 11, 6]),  # the tests' top ids in turn, each once
        (6, [3, 17, 20, 11, 6, 2]),
        (8, [3, 17, 20, 4, 11, 6, 2]),  # no more controls than there are, and none twice
    ],
)
def test_half_of_the_stepped_ids_are_top_ids(count, expected):
    assert stepped(TOP, [11, 6, 20, 2, 17][: 2 * count], count) == expected


RANKED = {t: np.random.default_rng(t).permutation(np.arange(100, 140)) for t in (0, 8)}


def test_groups_are_the_top_share_and_as_many_at_random():
    made = groups(RANKED, [0.025, 0.1, 0.5], seed=0)
    assert list(made) == [0, 8]
    sizes = {"2.5pct": 1, "10pct": 4, "50pct": 20}
    for t, named in made.items():
        assert {name: len(ids) for name, ids in named.items()} == {
            f"{kind}_{share}": size for share, size in sizes.items() for kind in ("top", "random")
        }
        for share, size in sizes.items():
            assert named[f"top_{share}"] == tuple(sorted(RANKED[t][:size].tolist()))
        for kind in ("top", "random"):
            small, middle, large = (set(named[f"{kind}_{share}"]) for share in sizes)
            assert small < middle < large
    assert made[0]["top_10pct"] != made[8]["top_10pct"]
    assert made[0]["random_10pct"] == made[8]["random_10pct"]
    assert groups(RANKED, [0.1], seed=1)[0]["random_10pct"] != made[0]["random_10pct"]


def test_the_smallest_group_is_one_sample():
    assert {len(ids) for ids in groups(RANKED, [0.001], seed=0)[0].values()} == {1}


# Files of these refits.


def result(request, *losses):
    return RefitResult(request, losses, 0.01, 0, 0.5, 0.25)


def test_weight_steps_ask_for_what_is_missing_and_record_once(tmp_path):
    files = {w: [LossFile(Layout(tmp_path).weight_losses(w, t)) for t in (0, 8)] for w in WEIGHTS}
    refits = WeightSteps([5, 3], files)
    assert refits.missing() == [RefitRequest(i, weight=w) for i in (5, 3) for w in (0.9, 1.1)]
    assert not refits.record(result(RefitRequest(5), 1.0, 2.0))
    assert not refits.record(result(RefitRequest(NULL_ID, group=(1,), name="top_1pct"), 1.0, 2.0))
    for _ in range(2):
        assert refits.record(result(RefitRequest(5, weight=0.9), 1.0, 2.0))
    assert (tmp_path / "weight_0.9" / "loo_losses_test_8.jsonl").read_bytes().count(b"\n") == 1
    again = WeightSteps([5, 3], files)
    assert again.missing() == [RefitRequest(5, weight=1.1), RefitRequest(3, weight=0.9), RefitRequest(3, weight=1.1)]
    row = files[0.9][1].rows()[5]
    assert (row.loss, row.grad_norm, row.seconds, row.extra) == (2.0, 0.01, 0.25, {"weight": 0.9})


def test_a_refit_that_one_test_lacks_is_made_again_for_it_alone(tmp_path):
    files = {0.9: [LossFile(tmp_path / f"{t}.jsonl") for t in (0, 8)]}
    WeightSteps([5], {0.9: files[0.9][:1]}).record(result(RefitRequest(5, weight=0.9), 1.0))
    refits = WeightSteps([5], files)
    assert refits.missing() == [RefitRequest(5, weight=0.9)]
    refits.record(result(RefitRequest(5, weight=0.9), 1.5, 2.5))
    assert [file.rows()[5].loss for file in files[0.9]] == [1.0, 2.5]


def test_groups_of_other_scores_are_not_taken_for_these(tmp_path):
    """Scores of another method rank other samples first; the name of a group does not show it."""
    file = GroupFile(tmp_path / "group_losses_test_0.jsonl")
    Groups({0: {"top_5pct": (1, 2)}}, [file]).record(result(RefitRequest(NULL_ID, group=(1, 2), name="top_5pct"), 1.0))
    with pytest.raises(InputError) as caught:
        Groups({0: {"top_5pct": (1, 3)}}, [file]).missing()
    assert str(caught.value) == (
        f"{file.path}: group top_5pct was refitted without other samples than the scores now put into it.\n"
        "  The scores have been computed again since. Delete this file to refit its groups, or give another "
        "--output_dir to keep both."
    )


def test_groups_ask_for_what_is_missing_and_record_once(tmp_path):
    named = {0: {"top_5pct": (1, 2), "random_5pct": (3, 4)}, 8: {"top_5pct": (5, 6), "random_5pct": (3, 4)}}
    files = [GroupFile(Layout(tmp_path).group_losses(t)) for t in named]
    refits = Groups(named, files)
    first, random, second = (
        RefitRequest(NULL_ID, group=ids, name=name)
        for ids, name in (((1, 2), "top_5pct"), ((3, 4), "random_5pct"), ((5, 6), "top_5pct"))
    )
    assert refits.missing() == [first, random, second]  # the random one once for both tests
    assert not refits.record(result(RefitRequest(NULL_ID), 1.0, 2.0))
    assert not refits.record(result(RefitRequest(3, weight=0.9), 1.0, 2.0))
    for request in (first, first, random):
        assert refits.record(result(request, 1.0, 2.0))
    again = Groups(named, files)
    assert again.missing() == [second]
    assert {t: list(file.rows()) for t, file in zip(named, files, strict=True)} == {
        0: ["top_5pct", "random_5pct"],
        8: ["random_5pct"],
    }
    assert again.record(result(second, 3.0, 4.0))
    assert (files[1].rows()["top_5pct"].loss, files[1].rows()["top_5pct"].ids) == (4.0, [5, 6])
    assert Groups(named, files).missing() == []


# Through refits of a small network.

QUERIES = tuple(x[:2] for x in dataset().tensors)
HOW = refitter(lambda: Trained(perceptron()), shuffle=True, init="cold", max_epochs=2)
NAMED = {0: {"top_10pct": (0, 5), "random_10pct": (7, 9)}, 1: {"top_10pct": (5, 11), "random_10pct": (7, 9)}}
TESTS, IDS, STEPPED, SEEDS, NULLS = (0, 1), [5, 11], [5], 2, 3


def losses_after(weights=None, how=HOW):
    module = how.fit(weights).module
    with torch.no_grad():
        return module.sample_losses(QUERIES).tolist()


def leaving(folder, removal="zero_weight", **settings):
    layout = Layout(folder)
    files = {w: [LossFile(layout.weight_losses(w, t)) for t in TESTS] for w in WEIGHTS}
    return LeaveOneOut(
        base=HOW.fit().module,
        refitter=HOW,
        queries=QUERIES,
        files=[LossFile(layout.loo_losses(t)) for t in TESTS],
        null_files=[LossFile(layout.null_losses(t), "draw") for t in TESTS],
        n=N,
        settings=RefitSettings(removal=removal, init="cold", null_refits=NULLS, seeds=SEEDS, **settings),
        extra_refits=(WeightSteps(STEPPED, files), Groups(NAMED, [GroupFile(layout.group_losses(t)) for t in TESTS])),
        seed_files=[LossFile(layout.seed_losses(t), "draw") for t in TESTS],
    )


def close(found):
    return pytest.approx(found, rel=0, abs=1e-12)  # stacked replicas add in another order


@pytest.fixture(scope="module", params=["zero_weight", "drop"])
def made(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    leaving(folder, request.param).run(IDS, IDS[1:])
    return request.param, Layout(folder)


@pytest.mark.parametrize("t", TESTS)
def test_a_group_is_removed_as_its_samples_are(made, t):
    removal, layout = made
    rows = GroupFile(layout.group_losses(t)).rows()
    assert {name: tuple(row.ids) for name, row in rows.items()} == NAMED[t]
    for row in rows.values():
        assert row.loss == close(losses_after(SampleWeights.removing(row.ids, removal, N))[t])


@pytest.mark.parametrize("t", TESTS)
def test_a_weight_step_is_that_of_one_sample(made, t):
    _, layout = made
    null = LossFile(layout.loo_losses(t)).rows()[NULL_ID].loss
    for weight in WEIGHTS:
        rows = LossFile(layout.weight_losses(weight, t)).rows()
        assert list(rows) == STEPPED
        for i, row in rows.items():
            assert row.loss == close(losses_after(SampleWeights.stepped(i, weight))[t])
            assert abs(row.loss - null) > 1e-9


@pytest.mark.parametrize("t", TESTS)
def test_other_seeds_are_whole_fits(made, t):
    _, layout = made
    rows = LossFile(layout.seed_losses(t), "draw").rows()
    assert list(rows) == [1, 2]
    for k, row in rows.items():
        assert row.loss == losses_after(how=dataclasses.replace(HOW, seed=HOW.seed + k))[t]
    assert len({row.loss for row in rows.values()} | {losses_after()[t]}) == 1 + SEEDS


@pytest.mark.parametrize("t", TESTS)
def test_null_refits_move_by_roundings(made, t):
    """Displaced by 1e3 units in the last place: two epochs of smooth training make little more of them."""
    _, layout = made
    null = LossFile(layout.loo_losses(t)).rows()[NULL_ID].loss
    draws = LossFile(layout.null_losses(t), "draw").rows()
    assert list(draws) == [1, 2, 3]
    losses = np.array([null, *(row.loss for row in draws.values())])
    assert len(set(losses.tolist())) == 1 + NULLS
    assert 0 < losses.std() < 1e-11
    displaced = [row.extra["displacement"] for row in draws.values()]
    norm = float(ParamSpace.of(HOW.start()).values_of(HOW.start()).norm())
    assert displaced == pytest.approx([1e3 * 2.2e-16 * norm] * NULLS, rel=0.5)


def test_single_refits_are_beside_them(made):
    removal, layout = made
    for t in TESTS:
        rows = LossFile(layout.loo_losses(t)).rows()
        assert list(rows) == [NULL_ID, *IDS]
        assert rows[NULL_ID].loss == close(losses_after()[t])
        for i in IDS:
            assert rows[i].loss == close(losses_after(SampleWeights.removing([i], removal, N))[t])
            assert rows[i].extra["control"] == (i in IDS[1:])


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.jsonl"))}


def test_what_is_there_is_not_made_again(made):
    removal, layout = made
    before = contents(layout.root)
    leaving(layout.root, removal).run(IDS, IDS[1:])
    assert contents(layout.root) == before


class CrashError(Exception):
    pass


@pytest.mark.parametrize("survive", [1, 2, 4])
def test_a_run_that_crashed_makes_the_rest_alone(tmp_path, monkeypatch, survive):
    """Two refits at a time; after some of them the machine gives up."""
    plain, asked = StackedReplicas.fit, []

    def failing(self, tasks):
        if len(asked) == survive:
            raise CrashError
        asked.append(len(tasks))
        return plain(self, tasks)

    def counting(self, tasks):
        asked.append(len(tasks))
        return plain(self, tasks)

    with monkeypatch.context() as patch:
        patch.setattr(StackedReplicas, "fit", failing)
        with pytest.raises(CrashError):
            leaving(tmp_path, replicas=2).run(IDS, [])
    before, missing = contents(tmp_path), 1 + NULLS + len(IDS) + 2 * len(STEPPED) + 3
    monkeypatch.setattr(StackedReplicas, "fit", counting)
    leaving(tmp_path, replicas=2).run(IDS, [])
    assert sum(asked) == missing
    after = contents(tmp_path)
    assert all(after[name].startswith(kept) for name, kept in before.items())
    rows = {name: content.count(b"\n") for name, content in after.items()}
    expected = {"": 1 + len(IDS), "null/": NULLS, "weight_0.9/": 1, "weight_1.1/": 1, "seeds/": SEEDS}
    assert rows == {
        **{f"{folder}loo_losses_test_{t}.jsonl": count for folder, count in expected.items() for t in TESTS},
        **{f"group_losses_test_{t}.jsonl": 2 for t in TESTS},
    }


def test_seeds_that_are_missing_alone_are_made(tmp_path):
    leaving(tmp_path).run(IDS, [])
    path = Layout(tmp_path).seed_losses(1)
    first = path.read_bytes().splitlines(keepends=True)[0]
    path.write_bytes(first + b'{"id": -1, "lo')  # a kill tore the second
    other = Layout(tmp_path).seed_losses(0).read_bytes()
    leaving(tmp_path).run(IDS, [])
    assert path.read_bytes().startswith(first)
    assert list(LossFile(path, "draw").rows()) == [1, 2]
    assert Layout(tmp_path).seed_losses(0).read_bytes() == other


def test_refits_of_a_decaying_fit_decay_as_it_did():
    """AdamW's decay is part of the base fit's recorded steps, and so of a refit's, one by one or stacked."""
    how = refitter(lambda: Trained(perceptron(), lambda p: optim.AdamW(p, lr=0.02, weight_decay=0.1)), shuffle=True)
    how = dataclasses.replace(how, allow_decoupled_decay=True)
    plain = refitter(lambda: Trained(perceptron(), lambda p: optim.AdamW(p, lr=0.02, weight_decay=0.0)), shuffle=True)
    alone = how.fit(SampleWeights.removing([3], "zero_weight", N))
    (together,) = StackedReplicas(how, 4).fit([RefitTask(SampleWeights.removing([3], "zero_weight", N))])
    torch.testing.assert_close(together.minimum.theta, alone.minimum.theta, rtol=0, atol=1e-12)
    assert float((alone.minimum.theta - plain.fit().minimum.theta).norm()) > 1e-3


def test_a_sample_with_the_id_of_the_null_refit_is_refused(tmp_path):
    with pytest.raises(InputError) as caught:
        leaving(tmp_path).run([-1, 3], [])
    assert str(caught.value).splitlines()[0] == (
        "A training sample has id -1, which in the files of refits (loo_losses) stands for the refit with nothing "
        "removed: the two results could not be told apart."
    )
    assert list(tmp_path.iterdir()) == []
