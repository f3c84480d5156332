"""Definitions of results, as the text that their files hold, where J weighs its samples."""

from __future__ import annotations

STATED = "weights that the caller states"

_PLAIN_AND_WEIGHTED = (
    ("J = (1/n) sum_i w_i l_i + R", "J = sum_i c_i w_i l_i + R"),
    ("(1/n)", "c_i"),
    ("hess l_i / n", "c_i hess l_i"),
    ("tr(hess l_i H^-1) / n", "c_i tr(hess l_i H^-1)"),
    ("scores[i] - mean(scores)", "scores[i] - n c_i mean(scores)"),
    ("the mean of the test's scores", "n c_i times the mean of the test's scores"),
)


def weighted_definitions(definitions: str, rule: str | None) -> str:
    """Returns the definitions for J = Σ c_i ℓ_i + R, in which the weight c_i takes the place of 1/n.

    Args:
        definitions: Definitions for the plain mean J = (1/n) Σ ℓ_i + R.
        rule: Noun phrase for what the weights depend on; None leaves the definitions as they are.
    """
    if rule is None:
        return definitions
    for plain, weighted in _PLAIN_AND_WEIGHTED:
        definitions = definitions.replace(plain, weighted)
    return (
        f"{definitions} J = sum_i c_i l_i + R weighs its samples as a training step does, by {rule}; "
        "c_i = factors[i] / n, with the factors in the files of the scores, and sum c_i = 1."
    )
