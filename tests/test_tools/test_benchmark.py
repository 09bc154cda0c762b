import json
import runpy
import sys
from importlib.util import find_spec
from pathlib import Path
from random import Random

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from torch import nn

from mmgnv3.benchmark import inference, networks, training
from mmgnv3.benchmark.networks import (
    BRANCH_FREE,
    OURS,
    TIMM,
    TIMM_BRANCH_FREE,
    build_classifier,
)
from mmgnv3.benchmark.timing import measure_interleaved
from mmgnv3.models import GhostNetV3
from mmgnv3.ops import load_library

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
DEVICES = ['cpu', pytest.param('cuda', marks=needs_cuda)]
ROOT = Path(__file__).parents[2]
TOOL = ROOT / 'tools' / 'benchmark.py'
PAIR = ('--networks', OURS, BRANCH_FREE)


@pytest.fixture
def run(monkeypatch):
    """Runs the tool as from the command line, in this process, to numbers that are drawn."""
    threads = torch.get_num_threads()

    def measure(tasks, rounds, device, **_):
        times = measure_interleaved(tasks, rounds, device, warm_up=0)
        return dict(zip(times, Random(8).sample(range(1, 1000), len(times)), strict=True))

    for module in (inference, training):
        monkeypatch.setattr(module, 'measure_interleaved', measure)

    def run(*args: str) -> None:
        monkeypatch.setattr(sys, 'argv', [TOOL.name, *args])
        runpy.run_path(str(TOOL), run_name='__main__')

    yield run
    torch.set_num_threads(threads)


def read_table(text: str) -> dict[str, list[str]]:
    """Cells of Markdown tables by the first one of their line; of equal ones the first counts."""
    lines = [line.strip('| ').split(' | ') for line in text.splitlines() if line.startswith('|')]
    return {line[0]: line[1:] for line in reversed(lines)}


@pytest.mark.parametrize('device', DEVICES)
def test_infer(run, capsys, tmp_path, device):
    out = tmp_path / 'new' / 'infer.json'
    options = ['--widths', '1', '--rounds', '1', '--threads', '1', '--size', '33']
    run('infer', *options, '--batch', '1', '2', '--device', device, '--out', str(out))
    printed = capsys.readouterr().out
    table = read_table(printed)
    latencies = ['training form', 'folded', 'training form, 2 images', 'folded, 2 images']
    assert table['network'] == ['params', 'params folded', 'MACs', *latencies]
    names = [OURS, TIMM, BRANCH_FREE, TIMM_BRANCH_FREE, 'MobileNetV3-Large 1x (timm)']
    pairs = [f'{OURS} / {TIMM}', f'{BRANCH_FREE} / {TIMM_BRANCH_FREE}']
    assert set(table) == {*names, *pairs, 'network', 'ratio', '---'}
    assert table[OURS][:2] == ['8.129M', '6.126M']
    # timm leaves 54 norms unfolded.
    assert table[TIMM][:2] == ['8.129M', '6.148M']
    assert table[OURS][2] == table[TIMM][2] == table[BRANCH_FREE][2]
    assert all(table[name][3].endswith(' ms') for name in names)
    assert table[TIMM_BRANCH_FREE][1::3] == ['-', '-']
    assert table['ratio'] == latencies and table[pairs[1]][1::2] == ['-', '-']

    content = json.loads(out.read_text())
    assert content['settings']['machine'] in printed
    assert torch.__version__ in content['settings']['machine']
    assert 'threads: 1' in content['settings']['machine']
    assert [row['network'] for row in content['rows']] == names
    times = [row['latency_ms']['folded, 2 images'] for row in content['rows']]
    assert set(times[0]) == {'contiguous', 'channels_last'} and times[3] == {}
    # Each in its better format.
    ratio = min(times[0].values()) / min(times[1].values())
    assert content['settings']['ratios'][pairs[0]]['folded, 2 images'] == ratio
    assert {path.name for path in out.parent.iterdir()} == {'infer.json', 'infer.png'}


@pytest.mark.parametrize('device', DEVICES)
def test_train(run, capsys, tmp_path, device):
    out = tmp_path / 'train.json'
    options = ['--batch', '2', '--rounds', '1', '--size', '33', '--device', device]
    run('train', *PAIR, *options, '--optimizer', '--amp', '--out', str(out))
    table = read_table(capsys.readouterr().out)
    headings = [cell for cell in table['network'] if cell.endswith(', ms')]
    columns = ['contiguous float32', 'channels_last float32', 'channels_last bf16']
    assert headings == [f'{column}, ms' for column in columns]
    assert all(float(table[name][0]) > 0 for name in (OURS, BRANCH_FREE))

    content = json.loads(out.read_text())
    assert len(content['rows']) == 2 * 3
    best = {}
    for row in content['rows']:
        assert row['step'] > 0 and row['update'] > 0
        key = row['network'], 'bf16' if row['amp'] else 'float32'
        best[key] = min(row['step'], best.get(key, row['step']))
    # A step in half precision is compared with such a step only.
    ratios = {mode: best[OURS, mode] / best[BRANCH_FREE, mode] for mode in ('float32', 'bf16')}
    assert content['settings']['ratios'] == {f'{OURS} / {BRANCH_FREE}': ratios}
    assert table['ratio'] == ['float32', 'bf16']
    assert table[f'{OURS} / {BRANCH_FREE}'] == [f'{ratio:.2f}' for ratio in ratios.values()]
    assert out.with_suffix('.png').stat().st_size > 0


def test_optimizer_is_that_of_the_recipe():
    config = Config.fromfile(ROOT / 'configs/_base_/schedules/lamb-cosine-600e_in1k.py')
    model = build_classifier(GhostNetV3(widen_factor=0.3))
    step = training.TrainingStep(model, torch.rand(1, 3, 33, 33), training.Variant(), True)
    recipe = build_optim_wrapper(model, config.optim_wrapper).optimizer
    assert type(step.optimizer) is type(recipe)
    groups, expected = (
        # The learning rate does not change the time of a step.
        [{**g, 'params': [id(p) for p in g['params']], 'lr': None} for g in each.param_groups]
        for each in (step.optimizer, recipe)
    )
    assert groups == expected


def test_memory(run, capsys, tmp_path):
    out = tmp_path / 'memory.json'
    run('memory', *PAIR, '--batch', '2', '--size', '64', '--out', str(out))
    table = read_table(capsys.readouterr().out)
    rows = {row['network']: row['saved_mib'] for row in json.loads(out.read_text())['rows']}
    assert table[OURS] == [f'{rows[OURS]:.0f}']
    assert table[f'{OURS} / {BRANCH_FREE}'] == [f'{rows[OURS] / rows[BRANCH_FREE]:.2f}']


def test_units(run, capsys, tmp_path):
    out = tmp_path / 'units.json'
    run('units', '--batch', '2', '--size', '64', '--rounds', '1', '--out', str(out))
    table = read_table(capsys.readouterr().out)
    assert table['form'] == [
        'units',
        *(f'{n}, ms' for n in ('all branches', 'branch by branch', 'one branch')),
    ]
    rows = json.loads(out.read_text())['rows']
    kind = 'fused' if load_library() else 'plain'
    assert {'moments', f'{kind} depthwise, stride 1'} < {row['form'] for row in rows}
    # All that have more than one branch: 16 blocks with two ghost modules of two units, the strided
    # convolutions of four.
    assert table['together'][0] == str(16 * 2 * 2 + 4) == str(sum(row['number'] for row in rows))
    for row in rows:
        assert table[row['form']][0] == str(row['number'])
        assert min(row['joint'], row['plain'], row['single']) > 0
    assert out.with_suffix('.png').stat().st_size > 0


def test_what_is_saved_is_counted_once():
    images = torch.rand(2, 3, 8, 8)
    conv = nn.Conv2d(3, 4, 1)
    model = nn.Sequential(conv, nn.Sigmoid(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    # The sigmoid keeps its output; the convolution keeps images and weights, which do not count;
    # cross entropy keeps log-probabilities, the labels and one more number.
    sigmoid, log_probabilities, rest = 2 * 4 * 64 * 4, 2 * 4 * 4, 2 * 8 + 4
    mib = training.measure_saved_activations(model, images)
    assert mib * 2**20 == sigmoid + log_probabilities + rest


def test_tasks_take_turns():
    order = []
    tasks = {name: lambda name=name: order.append(name) for name in 'ab'}
    times = measure_interleaved(tasks, rounds=2, device=torch.device('cpu'), warm_up=1)
    assert order == list('ababab')
    assert set(times) == {'a', 'b'} and all(time >= 0 for time in times.values())


def test_width_that_timm_does_not_have(run, capsys):
    run('infer', '--widths', '0.3', '--rounds', '1', '--size', '33')
    names = [name for name in read_table(capsys.readouterr().out) if 'Ghost' in name]
    assert names == ['GhostNetV3 0.3x', 'GhostNetV2 0.3x'][::-1]


@pytest.mark.skipif(inference.missing_for_onnx() is not None, reason='needs onnx and onnxruntime')
def test_onnx_runtime(run, capsys):
    run('infer', '--widths', '0.3', '--rounds', '1', '--size', '33', '--onnx')
    assert 'ONNX Runtime' in read_table(capsys.readouterr().out)['network']


@pytest.mark.skipif(find_spec('onnxruntime') is not None, reason='onnxruntime is installed')
def test_without_onnx_runtime_the_column_is_left_out(run, capsys):
    run('infer', '--widths', '0.3', '--rounds', '1', '--size', '33', '--onnx')
    printed = capsys.readouterr().out
    assert 'ONNX Runtime left out: it needs' in printed and 'pip install' in printed
    assert 'ONNX Runtime' not in read_table(printed)['network']


def test_scope_of_another_framework_does_not_matter():
    with DefaultScope.overwrite_default_scope('mmdet'):
        build_classifier(GhostNetV3(widen_factor=0.3))


@pytest.mark.slow
def test_compiled_and_in_half_precision(run, capsys):
    run('infer', '--widths', '0.3', '--rounds', '1', '--size', '33', '--compile')
    assert 'compiled' in read_table(capsys.readouterr().out)['network']
    options = ('--batch', '2', '--rounds', '1', '--size', '33', '--compile', '--amp')
    # All branches compile for minutes; the tests of the layers compile them unit by unit.
    run('train', '--networks', f'{OURS}, folded', *options)
    assert 'channels_last bf16 compiled, ms' in read_table(capsys.readouterr().out)['network']


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (('infer', '--widths', '-1'), 'widen_factor'),
        (('infer', '--size', '32', '--widths', '0.5'), 'too small'),
        (
            ('train', '--networks', 'ResNet'),
            'no network ResNet. Those to choose from: GhostNetV3 1x',
        ),
    ],
    ids=str,
)
def test_refused(run, args, message, tmp_path):
    out = tmp_path / 'infer.json'
    with pytest.raises(SystemExit, match=f'^error: .*{message}'):
        run(*args, '--out', str(out))
    assert not out.exists()


@pytest.mark.parametrize('command', ['train', 'infer', 'memory'])
def test_without_timm(run, monkeypatch, command):
    monkeypatch.setitem(sys.modules, 'timm', None)
    with pytest.raises(SystemExit, match=r"^error: .* pip install 'mmgnv3\[dev\]'\.$"):
        run(command)


def test_folder_is_made_before_the_measuring(run, monkeypatch, tmp_path):
    monkeypatch.setattr(networks, 'training_networks', lambda names: pytest.fail('measured'))
    (tmp_path / 'file').touch()
    with pytest.raises(SystemExit, match='^error: .*file: File exists'):
        run('memory', '--out', str(tmp_path / 'file' / 'memory.json'))


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        ((), 'required'),
        (('infer', '--rounds', '0'), 'at least 1'),
        (('infer', '--threads', 'two'), 'two'),
        (('infer', '--device', 'toaster'), 'no device'),
        (('train', '--device', 'cuda:99'), 'no cuda:99 here'),
        (('memory', '--out', 'memory.png'), 'must end in .json'),
    ],
    ids=str,
)
def test_refused_by_the_parser(run, args, message, capsys):
    with pytest.raises(SystemExit):
        run(*args)
    assert message in capsys.readouterr().err
