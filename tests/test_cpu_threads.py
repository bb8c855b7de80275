"""The fused kernels in threads, workers and forks: the same bits everywhere."""

import os
import threading

import pytest
import torch
from torch import Tensor

from tests.support.operator_cases import EVERY, arguments_of, gradients, same


@pytest.mark.parametrize("operator", EVERY)
@pytest.mark.parametrize("size", [(1, 30, 11), (5, 7, 7), (40, 2, 2), (2, 60, 60)], ids=str)
def test_same_bits_for_any_number_of_threads(operator: str, size: tuple[int, int, int]) -> None:
    values = arguments_of(operator, size)
    run = getattr(torch.ops.sanbench, operator)
    grad = torch.randn(run(*values).shape)
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            out, grads = gradients(run, values, grad)
            results.append([out, *grads])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def results_of(operator: str) -> list[Tensor]:
    values = arguments_of(operator, (2, 9, 12))
    run = getattr(torch.ops.sanbench, operator)
    out, grads = gradients(run, values, torch.ones(run(*values).shape))
    return [out, *grads]


@pytest.mark.parametrize("operator", EVERY)
def test_several_threads_at_once(operator: str) -> None:
    expected = results_of(operator)
    found: list[bool] = []

    def work() -> None:
        found.extend(same(results_of(operator), expected) for _ in range(8))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 32


class Attended(torch.utils.data.Dataset):
    """Runs the kernels, forward and backward, in the loader's workers."""

    def __len__(self) -> int:
        return len(EVERY)

    def __getitem__(self, index: int) -> list[Tensor]:
        with torch.enable_grad():
            return results_of(EVERY[index])


def test_workers_after_fork() -> None:
    expected = [results_of(operator) for operator in EVERY]  # the parent's threads exist by now
    loader = torch.utils.data.DataLoader(Attended(), batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=60)
    assert [same(found, wish) for found, wish in zip(loader, expected, strict=True)] == [True] * len(EVERY)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("operator", EVERY)
def test_plain_fork(operator: str) -> None:
    """A child of fork has none of its parent's threads, torch's autograd threads among them: the operators alone are called."""
    values = arguments_of(operator, (2, 9, 12))
    run = getattr(torch.ops.sanbench, operator)
    expected = run(*values)
    child = os.fork()
    if child == 0:
        os._exit(0 if same([run(*values)], [expected]) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
