"""A field of gradients is compared with products that are meant to be those of its derivative."""

import pytest
import torch

from ifloo.objective.gradient_field import compare_with_field

D = torch.float64


def matrix(seed, p=6):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(p, p, generator=draw, dtype=D)


def compare(A, B, dtype=D, scale=1.0):
    A, B = scale * A.to(dtype), scale * B.to(dtype)
    return compare_with_field(lambda at: A @ at, lambda V: V @ B, torch.linspace(-1, 1, len(A), dtype=dtype))


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e6])
@pytest.mark.parametrize("dtype", [D, torch.float32])
def test_a_symmetric_matrix_is_equal_at_any_scale(dtype, scale):
    A = matrix(0) + matrix(0).T
    assert compare(A, A, dtype, scale).equal


@pytest.mark.parametrize("dtype", [D, torch.float32])
def test_a_factor_is_measured(dtype):
    A = matrix(0) + matrix(0).T
    found = compare(A, 0.75 * A, dtype)
    assert found.difference == pytest.approx(0.25, abs=0.01)
    assert not found.equal
    assert found.asymmetry < 1e-5
    assert found.text(("Reverse",)).startswith("products with the Hessian (double backward) differ by 25 % from")


def test_the_transposed_derivative_of_a_field_that_is_no_gradient_is_not_symmetric():
    A = matrix(0)
    found = compare(A, A)  # rows V A are products with the transposed matrix, as those of a backward pass are
    assert not found.equal
    assert "and are not symmetric" in found.text(())


def test_a_kink_at_the_parameters_is_not_decided():
    theta = torch.zeros(5, dtype=D)
    assert compare_with_field(lambda at: at.sign(), torch.zeros_like, theta) is None


def test_a_field_without_a_derivative_is_equal_to_none():
    theta = torch.ones(5, dtype=D)
    assert compare_with_field(torch.ones_like, torch.zeros_like, theta).equal
