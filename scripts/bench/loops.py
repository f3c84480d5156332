"""Reference loops of the original tool, reproduced unchanged: the baseline of every speed-up.

One LiSSA step is one Hessian-vector product by double backward on one sample; the score of one training sample is one
backward pass; a refit is torch's L-BFGS with strong Wolfe on the full batch, one after the other.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from bench.clock import Clock
from bench.exact import exact_file
from bench.problem import QUERY, Array, Outcome, Part, Problem, Refits, numbers, some
from bench.task import Task

FLOOR = 2e-8  # ‖∇J‖ near which the line search stalls in float64; more iterations would only slow the baseline
FLOOR_STEPS = 10  # L-BFGS iterations between two checks of ‖∇J‖
STALLED = 10  # number of checks without a lower ‖∇J‖ after which the line search has reached rounding errors


def lissa(problem: Problem, task: Task) -> Outcome:
    """Runs LiSSA with batches of one, then a loop over all training samples; only `units` queries of a larger work.

    Raises:
        ArithmeticError: If the recursion diverges.
    """
    tests = problem.tests(task.work)
    done = some(tests, task.options.get("units"))
    W = problem.weights.clone().requires_grad_()
    generator = torch.Generator().manual_seed(0)
    clock, scores, directions = Clock(), [], []
    for t in done:
        loss = cross_entropy(problem.test_x[t : t + 1] @ W.T, problem.test_labels[t : t + 1])
        v = torch.autograd.grad(loss, W)[0]
        h = _inverse_hvp(problem, W, v, task, generator)
        directions.append(numbers(h).ravel())
        scores.append(_one_by_one(problem, W, h))
    part = Part(clock.read(), len(done), len(tests), "queries")
    return Outcome(np.stack(scores), done, directions=np.stack(directions), part=part)


def _inverse_hvp(problem: Problem, W: Tensor, v: Tensor, task: Task, generator: torch.Generator) -> Tensor:
    own = {"depth": 1000, "repeats": 10, "scale": 75.0, "damp": 0.01, **task.options}
    total = torch.zeros_like(v)
    for _ in range(own["repeats"]):
        h = v.clone()
        for i in torch.randint(problem.n, (own["depth"],), generator=generator).tolist():
            x, y = problem.x[i : i + 1], problem.labels[i : i + 1]
            loss = cross_entropy(x @ W.T, y) + 0.5 * problem.l2 * W.square().sum()
            gradient = torch.autograd.grad(loss, W, create_graph=True)[0]
            product = torch.autograd.grad((gradient * h).sum(), W)[0]
            h = v + (1 - own["damp"]) * h - product / own["scale"]
        total += h / own["scale"]
    if not bool(torch.isfinite(total).all()):
        raise ArithmeticError(f"LiSSA diverged at scale {own['scale']:g}; raise --lissa_scale.")
    repeats: int = own["repeats"]
    return total / repeats


def _one_by_one(problem: Problem, W: Tensor, h: Tensor) -> Array:
    scores = np.empty(problem.n)
    for i in range(problem.n):
        loss = cross_entropy(problem.x[i : i + 1] @ W.T, problem.labels[i : i + 1])
        gradient = torch.autograd.grad(loss, W)[0]
        scores[i] = -float((gradient * h).sum()) / problem.n
    return scores


def lbfgs(problem: Problem, task: Task) -> Outcome:
    """Runs `units` refits by L-BFGS from zero or (`warm`) the base weights, for `iterations` or to the floor."""
    with np.load(exact_file(task)) as file:
        ids = file["removed"]
    done = ids[: task.options["units"]]
    null, null_norm = _refit(problem, task, None)
    clock, changes, norms = Clock(), [], [null_norm]
    for i in done.tolist():
        loss, norm = _refit(problem, task, i)
        changes.append(loss - null)
        norms.append(norm)
    part = Part(clock.read(), len(done), len(ids), "refits")
    return Outcome(refits=Refits(done, np.array(changes), np.array(norms)), part=part)


def _refit(problem: Problem, task: Task, removed: int | None) -> tuple[float, float]:
    """Fits without one row and returns the loss of the query and ‖∇J‖ (in float64)."""
    keep = torch.ones(problem.n, dtype=torch.bool, device=problem.x.device)
    if removed is not None:
        keep[removed] = False
    x, y = (problem.x, problem.labels) if removed is None else (problem.x[keep], problem.labels[keep])
    start = problem.weights if task.options.get("warm") else torch.zeros_like(problem.weights)
    W = start.clone().requires_grad_()
    _minimise(W, x, y, problem.l2, task.options["iterations"])
    W = W.detach()
    loss = cross_entropy((problem.test_x[QUERY] @ W.T).double(), problem.test_labels[QUERY])
    return float(loss), _gradient_norm(W, x, y, problem.l2)


def _minimise(W: Tensor, x: Tensor, y: Tensor, l2: float, iterations: int | None) -> None:
    """Runs L-BFGS for `iterations`; None for until `FLOOR`, or until ‖∇J‖ no longer decreases."""
    optimizer = torch.optim.LBFGS(
        [W],
        max_iter=iterations or FLOOR_STEPS,
        max_eval=10 * (iterations or FLOOR_STEPS),
        tolerance_grad=0.0,
        tolerance_change=0.0,
        history_size=30,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = cross_entropy(x @ W.T, y) + 0.5 * l2 * W.square().sum()
        loss.backward()
        return loss

    best, stalled = float("inf"), 0
    while stalled < STALLED:
        optimizer.step(closure)
        assert W.grad is not None
        norm = float(W.grad.norm())
        best, stalled = (norm, 0) if norm < 0.9 * best else (best, stalled + 1)
        if iterations is not None or norm <= FLOOR:
            return


def _gradient_norm(W: Tensor, x: Tensor, y: Tensor, l2: float) -> float:
    """Computes ‖∇J‖ in float64 and in slices: the norm of a float32 gradient has an error of about 1e-6."""
    W = W.double()
    total = l2 * W
    for xs, ys in zip(x.split(5000), y.split(5000), strict=True):
        r = torch.softmax(xs.double() @ W.T, 1)
        r[torch.arange(len(ys)), ys] -= 1
        total = total + r.T @ xs.double() / len(x)
    return float(total.norm())
