import pytest
import torch

from mmgnv3.models.layers.depthwise_branches import depthwise_branches
from mmgnv3.models.layers.depthwise_moments import depthwise_moments
from mmgnv3.models.layers.depthwise_strided import depthwise_strided
from tests.test_models.test_layers.depthwise import assert_close, differences, make_branches

EPS = 1e-5


def run(form, branches):
    x, kernels, scale, gammas, betas = branches
    if form == 'moments':
        return depthwise_moments(x, kernels, scale, True, gammas, betas, EPS)
    if form == 'strided':
        return depthwise_strided(x, kernels, scale, (2, 2), gammas, betas, EPS)
    return depthwise_branches(x, kernels, scale, True, (1, 1), gammas, betas, EPS)


@pytest.mark.parametrize('size', [(1, 2), (7, 8)])
@pytest.mark.parametrize('with_scale', [True, False])
def test_equals_branches(with_scale, size):
    branches = make_branches((3, 4, *size), 3, 2, with_scale, True)
    assert_close(differences(lambda b: run('branches', b), branches, True, EPS), 1e-9, 1e-7)


@pytest.mark.parametrize(('dtype', 'limit'), [(torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
def test_half_precision(dtype, limit):
    branches = make_branches((4, 8, 9, 9), with_identity=True, dtype=dtype)
    result = differences(lambda b: run('branches', b), branches, True, EPS)
    # The gradient of the 1 x 1 weight is what terms leave that cancel: rounding, in this form.
    del result['scale']
    assert_close(result, limit)


@pytest.mark.parametrize('form', ['moments', 'strided'])
def test_joint_forms_compile_without_graph_breaks(form):
    """The second size makes sizes symbols."""
    torch.compiler.reset()
    compiled = torch.compile(run, fullgraph=True, backend='aot_eager')
    with_identity = form == 'moments'
    for size in ((6, 5), (8, 9)):
        branches = make_branches((2, 4, *size), with_identity=with_identity)
        result = differences(
            lambda b: compiled(form, b), branches, with_identity, EPS, 1 if with_identity else 2
        )
        assert_close(result, 1e-9, 1e-7)
