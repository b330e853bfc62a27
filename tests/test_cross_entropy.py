"""The chunked cross-entropy against torch's own on full logits."""

import pytest
import torch

from rl4rec.cross_entropy import fast_matmul_dtype, linear_cross_entropy


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("chunk_rows", [3, 7, 100])
def test_loss_and_gradients_equal_the_plain_ones(smoothing: float, chunk_rows: int) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(17, 8, requires_grad=True)
    weight = torch.randn(31, 8, requires_grad=True)
    targets = torch.randint(0, 31, (17,))
    loss = linear_cross_entropy(hidden, weight, targets, label_smoothing=smoothing, chunk_rows=chunk_rows)
    ours = torch.autograd.grad(2.5 * loss, (hidden, weight))
    plain = torch.nn.functional.cross_entropy(hidden @ weight.T, targets, label_smoothing=smoothing, reduction="sum")
    theirs = torch.autograd.grad(2.5 * plain, (hidden, weight))
    assert loss.item() == pytest.approx(plain.item(), rel=1e-5)
    for mine, reference in zip(ours, theirs, strict=True):
        assert torch.allclose(mine, reference, atol=1e-4)


def test_bfloat16_products_change_the_gradient_by_little() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(256, 64, requires_grad=True)
    weight = (0.1 * torch.randn(500, 64)).requires_grad_()
    targets = torch.randint(0, 500, (256,))
    exact, rough = (
        torch.autograd.grad(linear_cross_entropy(hidden, weight, targets, matmul_dtype=dtype), (hidden, weight))
        for dtype in (torch.float32, torch.bfloat16)
    )
    for a, b in zip(exact, rough, strict=True):
        assert (a - b).norm() / a.norm() < 0.01


def test_frozen_embeddings_get_no_gradient() -> None:
    hidden = torch.randn(4, 8, requires_grad=True)
    weight = torch.randn(5, 8)
    linear_cross_entropy(hidden, weight, torch.tensor([0, 1, 2, 3])).backward()
    assert hidden.grad is not None and weight.grad is None


def test_precision_setting() -> None:
    cpu = torch.device("cpu")
    assert fast_matmul_dtype("fp32", cpu) is torch.float32
    assert fast_matmul_dtype("bf16", cpu) is torch.bfloat16
    assert fast_matmul_dtype("auto", cpu) in (torch.float32, torch.bfloat16)
