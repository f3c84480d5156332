"""Exact scores to which all methods are compared: textbook Newton systems in float64, without ifloo's solvers.

For softmax regression without intercept, J = (1/n) Σ ℓ_i + ½λ‖W‖², H is formed block by block and factorised, and every
solution is checked (and refined once) with products that do not use the formed matrix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.linalg.blas import dsyrk

from bench.problem import QUERY, Array, Outcome, Problem, exact_file, numbers
from bench.task import Row, Task
from ifloo.refit import weights_sha256

RESIDUAL = 1e-10
SPREAD = 50  # further tests of T10000 with exact scores, evenly spaced over the whole range
REMOVALS_AT_ONCE = 50


@dataclass(frozen=True)
class Textbook:
    """J of softmax regression at fixed weights, float64.

    Attributes:
        x: Inputs, `[n, d]`.
        labels: Labels, `[n]`.
        probabilities: Predicted probabilities, `[n, C]`.
        l2: λ of the penalty.
    """

    x: Array
    labels: Array
    probabilities: Array
    l2: float

    @classmethod
    def at(cls, problem: Problem) -> Textbook:
        x, W = numbers(problem.x).astype(np.float64), numbers(problem.weights).astype(np.float64)
        return cls(x, numbers(problem.labels), softmax(x @ W.T), problem.l2)

    @property
    def n(self) -> int:
        return len(self.x)

    def hessian(self) -> Array:
        """Computes H, `[C d, C d]`, from blocks (1/n) Xᵀ diag(±w) X + λI; half of the products follow by symmetry."""
        d, P = self.x.shape[1], self.probabilities
        C = P.shape[1]
        blocks = np.zeros((C, d, C, d))
        for a in range(C):
            for b in range(a, C):
                weight = P[:, a] * (1 - P[:, a]) if a == b else P[:, a] * P[:, b]
                half = dsyrk((1 if a == b else -1) / self.n, (self.x * np.sqrt(weight)[:, None]).T)
                block = half + np.triu(half, 1).T
                blocks[a, :, b], blocks[b, :, a] = block, block
        H = blocks.reshape(C * d, C * d)
        H[np.diag_indices(C * d)] += self.l2
        return H

    def product(self, V: Array) -> Array:
        """Computes H times each row of V, `[m, C d]`, without forming H."""
        C = self.probabilities.shape[1]
        out = np.empty_like(V)
        for k, v in enumerate(V):
            U = self.x @ v.reshape(C, -1).T
            U = self.probabilities * (U - (self.probabilities * U).sum(1, keepdims=True))
            out[k] = (U.T @ self.x).ravel() / self.n + self.l2 * v
        return out

    def scores(self, directions: Array) -> Array:
        """Computes −(1/n) ∇ℓ_i · v for each row v, `[m, n]`."""
        R, C = residuals(self.probabilities, self.labels), self.probabilities.shape[1]
        return np.stack([(R * (self.x @ v.reshape(C, -1).T)).sum(1) / -self.n for v in directions])


def softmax(logits: Array) -> Array:
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    return shifted / shifted.sum(1, keepdims=True)


def residuals(probabilities: Array, labels: Array) -> Array:
    """Computes the gradient of the loss in the logits, p − y."""
    return probabilities - np.eye(probabilities.shape[1])[labels]


def gradients(x: Array, r: Array) -> Array:
    """Computes ∇ℓ of samples with inputs x and logit gradients r as outer products, `[m, C d]`."""
    return np.einsum("mc,md->mcd", r, x).reshape(len(x), -1)


def query_gradients(problem: Problem, tests: list[int]) -> Array:
    """Computes ∇L_t of test images, float64."""
    x = numbers(problem.test_x[tests]).astype(np.float64)
    P = softmax(x @ numbers(problem.weights).astype(np.float64).T)
    return gradients(x, residuals(P, numbers(problem.test_labels[tests])))


def true_residual(problem: Problem, tests: list[int], directions: Array) -> float:
    """Computes the largest ‖∇L_t − H v_t‖ / ‖∇L_t‖ of the undamped system, in float64."""
    b = query_gradients(problem, tests)
    left = b - Textbook.at(problem).product(directions.astype(np.float64))
    return float((np.linalg.norm(left, axis=1) / np.linalg.norm(b, axis=1)).max())


def required_tests(problem: Problem, works: list[str]) -> list[int]:
    """Lists the tests whose exact scores the works need."""
    ids = {QUERY}
    if {"T100", "T10000"} & set(works):
        ids |= set(problem.tests("T100"))
    if "T10000" in works:
        ids |= {int(t) for t in np.linspace(0, len(problem.data.test_set) - 1, SPREAD)}
    return sorted(ids)


def make(problem: Problem, task: Task) -> Outcome:
    """Writes exact scores and their predictions for the removals of R500, plain and leverage-corrected.

    Raises:
        ArithmeticError: If the residual of a solution exceeds `RESIDUAL`.
    """
    tests = required_tests(problem, task.options["works"])
    key = f"{problem.data.fingerprint()} {weights_sha256(problem.module)} {task.refits}"
    if (stored := _stored(task, key, tests)) is not None:
        return stored
    truth = Textbook.at(problem)
    factor = cho_factor(truth.hessian(), lower=True, overwrite_a=True, check_finite=False)
    b = query_gradients(problem, tests)
    v = cho_solve(factor, b.T).T
    v += cho_solve(factor, (b - truth.product(v)).T).T
    residual = np.linalg.norm(b - truth.product(v), axis=1) / np.linalg.norm(b, axis=1)
    if residual.max() > RESIDUAL:
        raise ArithmeticError(
            f"The exact scores are not exact: residual {residual.max():.1e} on test {tests[int(residual.argmax())]}, "
            f"at most {RESIDUAL:.0e} was expected. Is l2_reg of the base model far below 0.01?"
        )
    scores = truth.scores(v)
    of_query = scores[tests.index(QUERY)]
    removed = np.argsort(-np.abs(of_query), kind="stable")[: task.refits]
    corrected = np.empty(0)
    if "R500" in task.options["works"]:
        corrected = removal_effects(truth, factor, b[tests.index(QUERY)], removed) + of_query.mean()
    predicted = -(of_query[removed] - of_query.mean())
    np.savez(
        exact_file(task),
        key=key,
        residual=residual.max(),
        tests=tests,
        scores=scores,
        removed=removed,
        predicted=predicted,
        corrected=corrected,
    )
    return Outcome(residual=float(residual.max()))


def _stored(task: Task, key: str, tests: list[int]) -> Outcome | None:
    """Returns the result of an earlier run in this folder if it has the same images and weights and all tests."""
    if not exact_file(task).is_file():
        return None
    with np.load(exact_file(task)) as file:
        enough = set(tests) <= set(file["tests"].tolist()) and (
            len(file["corrected"]) or "R500" not in task.options["works"]
        )
        if str(file["key"]) != key or not enough:
            return None
        again = {"wall_s": None, "cpu_s": None, "peak_rss_gb": None, "note": f"taken from {exact_file(task)}"}
        return Outcome(residual=float(file["residual"]), extra=again)


def removal_effects(truth: Textbook, factor: tuple[Array, bool], b: Array, removed: Array) -> Array:
    """Computes (1/n) ∇L_tᵀ (H − ∇²ℓ_i/n)⁻¹ ∇ℓ_i, nats, for each i by the Woodbury identity on sample i's C columns."""
    C = truth.probabilities.shape[1]
    effects = []
    for start in range(0, len(removed), REMOVALS_AT_ONCE):
        ids = removed[start : start + REMOVALS_AT_ONCE]
        U = np.einsum("ce,kd->kcde", np.eye(C), truth.x[ids]).transpose(0, 1, 3, 2).reshape(len(ids) * C, -1)
        Z = cho_solve(factor, U.T).T.reshape(len(ids), C, -1)
        P = truth.probabilities[ids]
        for z, u, p, r in zip(Z, U.reshape(Z.shape), P, residuals(P, truth.labels[ids]), strict=True):
            S = (np.diag(p) - np.outer(p, p)) / truth.n
            effects.append(b @ (z.T @ np.linalg.solve(np.eye(C) - S @ (u @ z.T), r)) / truth.n)
    return np.array(effects)


def compared(task: Task, outcome: Outcome) -> Row:
    """Returns the statistics of a row: the worst over all scored tests that have exact scores."""
    with np.load(exact_file(task)) as file:
        truth = {name: cast(Array, file[name]) for name in file.files}
    if outcome.refits is not None:
        return _of_refits(outcome, truth)
    if outcome.scores is None:
        return {}
    place = {int(t): k for k, t in enumerate(truth["tests"])}
    pairs = [(outcome.scores[k], truth["scores"][place[t]]) for k, t in enumerate(outcome.tests) if t in place]
    pearsons, slopes, errors = zip(*(_against(np.asarray(s, np.float64), e) for s, e in pairs), strict=True)
    return {
        "pearson": min(pearsons),
        "slope": max(slopes, key=lambda s: abs(s - 1)),
        "max_rel_err": max(errors),
        "compared_on": len(pairs),
    }


def _against(scores: Array, exact: Array) -> tuple[float, float, float]:
    """Returns Pearson, the slope of exact on `scores`, and the largest error relative to the largest exact score.

    Raises:
        ArithmeticError: If a score is NaN or infinite.
    """
    if not np.isfinite(scores).all():
        raise ArithmeticError(f"{(~np.isfinite(scores)).sum()} of {scores.size} scores are not finite.")
    return (*_line(scores, exact), float(np.abs(scores - exact).max() / np.abs(exact).max()))


def _line(x: Array, y: Array) -> tuple[float, float]:
    """Returns Pearson and the slope of y on x."""
    x, y = x - x.mean(), y - y.mean()
    return float(x @ y / np.sqrt((x @ x) * (y @ y))), float(x @ y / (x @ x))


def _of_refits(outcome: Outcome, truth: dict[str, Array]) -> Row:
    refits = outcome.refits
    assert refits is not None
    place = {int(i): k for k, i in enumerate(truth["removed"])}
    at = [place[int(i)] for i in refits.ids]
    row: Row = {"residual": float(refits.grad_norm.max())}
    for suffix, prediction in (("", truth["predicted"][at]), ("_corrected", truth["corrected"][at])):
        error = np.abs(prediction - refits.change) / np.abs(refits.change)
        row[f"median_rel_err{suffix}"] = float(np.median(error))
        if len(at) > 2:
            row[f"pearson{suffix}"], row[f"slope{suffix}"] = _line(prediction, refits.change)
    return row
