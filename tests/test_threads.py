"""What several threads train is the same every time, for every variant."""

from typing import Any

import pytest
import torch
from lib.losses.patch_triplets import patch_triplets
from torch.utils._python_dispatch import TorchDispatchMode

from lib.core.trainer import Pretrainer
from lib.methods import build_method
from tests.examples import CPU, FORMS, images, params_file, pretraining

TRAINED = [name for name, block in params_file()["variants"].items() if block.get("epochs", 1)]


class InOneOrder(TorchDispatchMode):
    """Refuses to accumulate at indices, which threads of a CPU do in the order in which they come by."""

    def __torch_dispatch__(self, operation: Any, types: Any, given: tuple = (), named: dict | None = None) -> Any:
        name = operation.overloadpacket.__name__
        place = {"index_put": 3, "index_put_": 3, "_index_put_impl_": 3, "put": 3, "put_": 3}.get(name)
        if place and len(given) > place and given[place] and given[0].is_floating_point():
            raise AssertionError(f"{operation} accumulates {list(given[2].shape)}: in no order that is always the same")
        return operation(*given, **(named or {}))


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def trained(variant: str, steps: int = 2) -> Pretrainer:
    torch.manual_seed(0)
    params = pretraining(variant, epochs=1)
    run = Pretrainer(build_method(params), images(count=64), params, CPU)
    order = run.order(0)
    with InOneOrder():
        for number in range(steps):
            run.step(0, number, order[number])
            run.method.after_step(run.steps // 2 - 1, run.steps)  # a method may turn to other layers there
    return run


def test_the_refusal_knows_what_it_refuses():
    rows = torch.zeros(3, 2, requires_grad=True)
    with pytest.raises(AssertionError, match="index_put.* accumulates"), InOneOrder():
        rows[torch.tensor([0, 0])].sum().backward()


@pytest.mark.parametrize("variant", [*TRAINED, *FORMS])
def test_a_training_by_two_threads_is_the_same_twice(variant):
    first, second = trained(variant).method.state_dict(), trained(variant).method.state_dict()
    assert [name for name, value in first.items() if not torch.equal(value, second[name])] == []


def test_a_patch_of_many_triplets_gets_the_slopes_of_all():
    stream = torch.Generator().manual_seed(0)
    patches = torch.randn(3, 5, 4, generator=stream, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda rows: (torch.manual_seed(0), patch_triplets(rows, 1.0)[0])[1], patches)
