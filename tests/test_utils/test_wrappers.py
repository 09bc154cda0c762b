from types import SimpleNamespace

from torch import nn

from mmgnv3.utils.wrappers import replace_model, unwrap


def test_a_network_is_taken_out_of_its_wrapper_and_another_put_in():
    first, second = nn.Conv2d(1, 1, 1), nn.Conv2d(2, 2, 1)
    wrapper = nn.DataParallel(first)
    assert unwrap(wrapper) is first
    runner = SimpleNamespace(model=wrapper)
    replace_model(runner, second)
    assert runner.model is wrapper
    assert unwrap(wrapper) is second


def test_a_network_without_a_wrapper():
    first, second = nn.Conv2d(1, 1, 1), nn.Sequential()
    # A part of that name makes no wrapper.
    first.module = nn.Identity()
    assert unwrap(first) is first
    runner = SimpleNamespace(model=first)
    replace_model(runner, second)
    assert runner.model is second
