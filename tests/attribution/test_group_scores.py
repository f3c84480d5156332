"""Groups of samples removed together: the sum of their scores, against exact refits and to the right order."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from ifloo.errors import InputError
from tests.problems import Logistic, Ridge

GROUP = [3, 17, 4, 30, 8]


@pytest.mark.parametrize("kind", [Ridge, Logistic], ids=lambda k: k.__name__)
def test_a_group_is_the_sum_of_its_samples(kind):
    problem = kind.make()
    scores = problem.engine().scores(problem.queries)
    s = problem.scores()
    close = {"rtol": 1e-10, "atol": 1e-13}
    torch.testing.assert_close(scores.group(GROUP, "zero_weight"), -s[:, GROUP].sum(1), **close)
    torch.testing.assert_close(scores.group(GROUP), -(s[:, GROUP] - s.mean(1, keepdim=True)).sum(1), **close)
    order = torch.randperm(problem.n, generator=torch.Generator().manual_seed(0))
    moved = problem.engine(order=order).scores(problem.queries)
    torch.testing.assert_close(moved.group(GROUP), scores.group(GROUP), **close)
    one = problem.engine().scores(problem.queries).group([7], "zero_weight")
    torch.testing.assert_close(one, -s[:, 7], **close)


@pytest.mark.parametrize("removal", ["drop", "zero_weight"])
@pytest.mark.parametrize("kind", [Ridge, Logistic], ids=lambda k: k.__name__)
def test_half_the_share_of_a_group_quarters_the_error(kind, removal):
    """The same five samples among 16, 32, 64 copies of the data: their share halves, the error is of second order."""
    small, errors = kind.make(), []
    for copies in (16, 32, 64):
        problem = replace(small, x=small.x.repeat(copies, 1), labels=small.labels.repeat(copies))
        n, k = problem.n, len(GROUP)
        weights = torch.full((n,), n / (n - k) if removal == "drop" else 1.0, dtype=torch.float64)
        weights[GROUP] = 0
        actual = problem.query_losses(problem.fit(weights)) - problem.query_losses(problem.theta)
        predicted = problem.engine(batch_size=2000).scores(problem.queries).group(GROUP, removal)
        errors.append((actual - predicted).abs())
    for coarse, fine in pairwise(errors):
        assert ((coarse / fine > 3.5) & (coarse / fine < 4.5)).all(), (coarse, fine)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (
            [],
            "A group is one or more training ids, each once; got 0 ids, 0 of them different.\n"
            "  Give each id of the group once.",
        ),
        (
            [3, 4, 3],
            "A group is one or more training ids, each once; got 3 ids, 2 of them different.\n"
            "  Give each id of the group once.",
        ),
        ([3, 40], "Ids [40] are not among the 40 training ids.\n  Give ids of training samples."),
    ],
)
def test_what_is_no_group_is_refused(ids, message):
    problem = Ridge.make()
    scores = problem.engine().scores(problem.queries)
    with pytest.raises(InputError) as caught:
        scores.group(ids)
    assert str(caught.value) == message
