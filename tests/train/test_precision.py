"""`precision` reaches the body's products and nothing that a loss is made of."""

import pytest
import torch

from rl4rec.data.dataset import PreparedData
from rl4rec.model.policy import SlatePolicy
from rl4rec.train.precision import choose_precision
from tests.train.helpers import make_trainer, rl_params

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("name", "device", "width", "native", "expected"),
    [
        ("auto", CUDA, 768, True, (torch.bfloat16, False, torch.bfloat16)),
        ("auto", CUDA, 64, True, (None, False, torch.bfloat16)),  # waits for launches, whatever the precision
        ("auto", CUDA, 768, False, (None, False, torch.float32)),  # a GPU from before bfloat16
        ("tf32", CUDA, 64, True, (None, True, torch.float32)),
        ("tf32", CPU, 64, True, (None, False, torch.float32)),
        ("fp32", CUDA, 768, True, (None, False, torch.float32)),
        ("bf16", CPU, 64, True, (torch.bfloat16, False, torch.bfloat16)),
    ],
)
def test_what_each_setting_means(
    name: str,
    device: torch.device,
    width: int,
    native: bool,
    expected: tuple[object, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native)
    found = choose_precision(name, device, width=width)
    assert (found.body, found.tf32, found.softmax) == expected


def test_on_a_cpu_auto_leaves_the_body_alone() -> None:
    found = choose_precision("auto", CPU, width=4096)
    assert found.body is None and found.softmax in (torch.float32, torch.bfloat16)


def test_tf32_is_set_while_reading_and_for_gradients_only() -> None:
    precision = choose_precision("tf32", CUDA, width=64)
    before = torch.get_float32_matmul_precision()
    for context in (precision.gradients, precision.reading):
        with context():
            assert torch.get_float32_matmul_precision() == "high"
        assert torch.get_float32_matmul_precision() == before


@pytest.mark.parametrize("algorithm", ["ppo", "grpo", "sft_continued"])
def test_bf16_reads_in_bfloat16_and_scores_in_float32(
    algorithm: str, tiny_policy: SlatePolicy, tiny_data: PreparedData
) -> None:
    trainer = make_trainer(algorithm, tiny_policy, tiny_data, rl_params(precision="bf16"))
    seen: list[tuple[torch.dtype, torch.dtype]] = []

    def remember(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        seen.append((output.dtype, trainer.policy.lm.transformer.h[0].attn.c_attn.weight.dtype))

    hook = trainer.policy.lm.transformer.h[0].attn.c_attn.register_forward_hook(remember)
    histories = [history for history in trainer.prompts.visit(0, 8).histories]
    padded = trainer.policy.pad_histories(histories)
    states = trainer.encode(trainer.policy, padded)
    hook.remove()
    assert set(seen) == {(torch.bfloat16, torch.float32)}
    assert states.vectors.dtype == torch.float32
    exact = trainer.policy.encode(padded).vectors
    apart = (states.vectors - exact).abs().max() / exact.abs().max()
    assert 0 < apart < 0.05
    trainer.train_step(0, logged=True)
    for weight in trainer.modules.parameters():
        assert weight.dtype == torch.float32 and (weight.grad is None or weight.grad.dtype == torch.float32)
