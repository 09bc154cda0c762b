import functools
import json
import os
import pickle
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmgnv3.apis import run
from mmgnv3.apis.deploy import fold_checkpoint
from tests.test_apis.tiny import write_classification, write_detection
from tests.test_engine.runs import write_configs, write_teacher

REPOSITORY = Path(__file__).parents[2]


def call(tool, *arguments, cwd, launch=()):
    """Run a tool as a user does, from another directory."""
    command = [sys.executable, *launch, REPOSITORY / 'tools' / tool, *arguments]
    # Not every environment has the package installed; and a test run is no distributed one.
    env = {**os.environ, 'PYTHONPATH': str(REPOSITORY)}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)


@pytest.fixture(scope='module')
def detector(tmp_path_factory):
    """Config, checkpoint and folded checkpoint of a detector that the tool has trained."""
    folder = tmp_path_factory.mktemp('detector')
    config = str(write_detection(folder))
    done = call('train.py', config, '--local-rank', '0', '--auto-scale-lr', cwd=folder)
    assert done.returncode == 0, done.stderr
    checkpoint = str(folder / 'work_dirs/detector/epoch_1.pth')
    fold_checkpoint(config, checkpoint, str(folder / 'folded.pth'))
    return config, checkpoint, str(folder / 'folded.pth')


@pytest.fixture(scope='module')
def classifier(tmp_path_factory):
    """The same of a classifier."""
    folder = tmp_path_factory.mktemp('classifier')
    config = str(write_classification(folder))
    run.train(config, work_dir=str(folder / 'work'))
    checkpoint = str(folder / 'work/epoch_1.pth')
    fold_checkpoint(config, checkpoint, str(folder / 'folded.pth'))
    return config, checkpoint, str(folder / 'folded.pth')


@pytest.mark.parametrize(
    ('tool', 'flags'),
    [
        ('train.py', ('--resume', '--auto-scale-lr', '--no-validate', '--launcher', '--amp')),
        ('test.py', ('--out', '--out-item', '--show-dir', '--tta', '--launcher', '--amp')),
    ],
)
def test_help(tool, flags, tmp_path):
    answer = call(tool, '-h', cwd=tmp_path)
    assert answer.returncode == 0
    for flag in ('--work-dir', '--cfg-options', *flags):
        assert flag in answer.stdout


def test_without_coco_the_front_door_says_what_to_do(tmp_path):
    done = call('train.py', REPOSITORY / 'configs/retinanet_gnv3.py', cwd=tmp_path)
    assert done.returncode == 1
    for text in (f'{tmp_path}/data/coco/annotations/', 'cocodataset.org', 'make demo'):
        assert text in done.stderr
    assert 'Traceback' not in done.stderr
    assert not list(tmp_path.iterdir())


def test_arguments_of_the_network_are_refused_in_one_message(detector, tmp_path, monkeypatch):
    tool = str(REPOSITORY / 'tools' / 'train.py')
    work_dir = tmp_path / 'work'
    options = ('--cfg-options', 'model.backbone.widen_factor=-1', '--work-dir', str(work_dir))
    monkeypatch.setattr(sys, 'argv', [tool, detector[0], *options])
    with pytest.raises(SystemExit, match='^error: widen_factor must be'):
        runpy.run_path(tool, run_name='__main__')
    assert not work_dir.exists()


@pytest.fixture(scope='module')
def predict(tmp_path_factory):
    """Predictions that ``test`` writes for a checkpoint; each is made once."""

    @functools.cache
    def run_test(config, checkpoint, tta=False):
        folder = tmp_path_factory.mktemp('test')
        out = folder / 'predictions.pkl'
        run.test(config, checkpoint, work_dir=str(folder), out=str(out), tta=tta)
        return pickle.loads(out.read_bytes())

    return run_test


def test_folded_detector_predicts_the_same(detector, predict):
    config, checkpoint, folded = detector
    ours, theirs = predict(config, checkpoint), predict(config, folded)
    assert len(ours) == 2
    for one, other in zip(ours, theirs, strict=True):
        one, other = one['pred_instances'], other['pred_instances']
        assert len(one['scores']) > 0
        torch.testing.assert_close(one['scores'], other['scores'], rtol=1e-4, atol=1e-4)
        # In any order: rounding decides which of two boxes with nearly one score comes first.
        distances = (one['bboxes'][:, None] - other['bboxes']).abs().amax(2)
        assert distances.min(0).values.max() < 1e-3 and distances.min(1).values.max() < 1e-3


def test_folded_classifier_predicts_the_same(classifier, predict):
    config, checkpoint, folded = classifier
    ours, theirs = predict(config, checkpoint), predict(config, folded)
    assert len(ours) == 4
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one['pred_score'], other['pred_score'], rtol=1e-4, atol=1e-4)


def test_test_time_augmentation(detector, classifier, predict):
    for (config, _, folded), scores in (
        (detector, lambda prediction: prediction['pred_instances']['scores']),
        (classifier, lambda prediction: prediction['pred_score']),
    ):
        plain, augmented = predict(config, folded), predict(config, folded, tta=True)
        for one, other in zip(plain, augmented, strict=True):
            assert not scores(one).equal(scores(other))


def test_metrics_are_written(classifier, tmp_path):
    config, checkpoint, _ = classifier
    out = tmp_path / 'results' / 'metrics.json'
    options = dict(work_dir=str(tmp_path / 'work'), out=str(out), out_item='metrics')
    metrics = run.test(config, checkpoint, **options)
    assert 'accuracy/top1' in metrics
    assert json.loads(out.read_text()) == pytest.approx(metrics)
    assert list(out.parent.iterdir()) == [out]


def test_pictures_are_drawn(detector, tmp_path):
    config, _, folded = detector
    run.test(config, folded, work_dir=str(tmp_path), show_dir='pictures')
    assert len(list(tmp_path.glob('*/pictures/*.jpg'))) == 2


def test_checkpoint_of_another_width_is_refused(classifier, tmp_path):
    config, checkpoint, folded = classifier
    options = {'model.backbone.widen_factor': 1.0, 'model.head.in_channels': 960}
    for path in (checkpoint, folded):
        with pytest.raises(ValueError, match='does not fit the network of the config'):
            run.test(config, path, work_dir=str(tmp_path), cfg_options=options)


def test_resume_goes_on(classifier, tmp_path):
    config, checkpoint, _ = classifier
    options = {'train_cfg.max_epochs': 2}
    run.train(config, work_dir=str(tmp_path), resume=checkpoint, cfg_options=options)
    resumed = torch.load(tmp_path / 'epoch_2.pth', weights_only=False)
    assert resumed['meta']['epoch'] == 2
    assert not (tmp_path / 'epoch_1.pth').exists()


def test_a_distilled_run_needs_its_teacher_no_more(tmp_path, monkeypatch):
    """With all hooks: trained, tested, folded by the hook and by the tool, tested again."""
    monkeypatch.chdir(write_configs(tmp_path))
    teacher = write_teacher(tmp_path)
    hooks = ('EMAHook', 'ReparamHook', 'ExactResumeHook', 'FiniteLossHook')
    options = {
        'custom_hooks': [dict(type=f'mmgnv3.{hook}') for hook in hooks],
        'train_cfg.max_epochs': 1,
    }
    run.train('distilled.py', work_dir='work', cfg_options=options)
    teacher.unlink()

    checkpoint = 'work/epoch_1.pth'
    fold_checkpoint('distilled.py', checkpoint, 'folded.pth')
    fold_checkpoint('distilled.py', checkpoint, 'raw.pth', which='raw')
    scores = {}
    for path in (checkpoint, 'work/deployed_epoch_1.pth', 'folded.pth', 'raw.pth'):
        for config in ('distilled.py', 'plain.py'):
            run.test(config, path, work_dir='test', out='out.pkl', cfg_options=options)
            predictions = pickle.loads(Path('out.pkl').read_bytes())
            scores[path, config] = torch.stack([p['pred_score'] for p in predictions])
    expected = scores[checkpoint, 'plain.py']
    for (path, _), actual in scores.items():
        assert torch.allclose(actual, expected, rtol=1e-4, atol=1e-4) == (path != 'raw.pth'), path


def test_a_folded_network_is_not_resumed(detector, tmp_path):
    config, _, folded = detector
    with pytest.raises(ValueError, match=r'folded\.pth is folded, .* give the epoch_N\.pth'):
        run.train(config, work_dir=str(tmp_path / 'work'), resume=folded)
    assert not (tmp_path / 'work').exists()


@pytest.mark.slow
def test_two_processes_test_a_folded_network(detector, predict, tmp_path):
    config, _, folded = detector
    launch = ('-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2')
    out = tmp_path / 'predictions.pkl'
    done = call(
        'test.py',
        config,
        folded,
        '--launcher',
        'pytorch',
        '--out',
        out,
        cwd=tmp_path,
        launch=launch,
    )
    assert done.returncode == 0, done.stderr
    together = pickle.loads(out.read_bytes())
    for one, other in zip(predict(config, folded), together, strict=True):
        torch.testing.assert_close(one['pred_instances'], other['pred_instances'])
