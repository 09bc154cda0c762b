import copy
import pickle

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from mmengine.hub import get_config
from mmengine.model import ExponentialMovingAverage, MMDistributedDataParallel
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import DefaultScope
from mmengine.runner import set_random_seed
from mmpretrain.models import ClsDataPreprocessor, SelfSupDataPreprocessor
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from mmgnv3.reparam import fold
from tests.test_models.test_classifiers.small import (
    NETWORK,
    NUM_CLASSES,
    STUDENT,
    batch,
    build,
    mirror,
)


def plain_classifier() -> nn.Module:
    """The classifier that a distilled one is without its teacher."""
    head = {**STUDENT['head'], 'type': 'StackedLinearClsHead'}
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return MODELS.build({'type': 'ImageClassifier', **copy.deepcopy(STUDENT), 'head': head})


def train_step(model: nn.Module, data: dict | None = None) -> dict[str, Tensor]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    return model.train_step(data or batch(), OptimWrapper(optimizer))


class TestWhatTheTeacherSees:
    """The same augmented batch as the student, in its own form."""

    @pytest.mark.parametrize('data', ['RGB', 'BGR'])
    @pytest.mark.parametrize('to_rgb', [False, True])
    @pytest.mark.parametrize('teacher_order', ['RGB', 'BGR'])
    @pytest.mark.parametrize('normalised', [False, True])
    def test_normalisation_and_channel_order(self, data, to_rgb, teacher_order, normalised):
        form = dict(STUDENT['data_preprocessor']) if normalised else {}
        model = build(
            dict(
                mirror(mean=[10.0, 60.0, 200.0], std=[20.0, 50.0, 90.0], to_rgb=False),
                channel_order=teacher_order,
            ),
            data_preprocessor=dict(form, to_rgb=to_rgb),
            channel_order=data[::-1] if to_rgb else data,
        )
        train_step(model)
        channels = dict(zip(data, batch()['inputs'].float().unbind(1), strict=True))
        expected = [
            (channels[name] - mean) / std
            for name, mean, std in zip(teacher_order, (10, 60, 200), (20, 50, 90), strict=True)
        ]
        (shown,) = model.teacher.build().shown
        torch.testing.assert_close(shown, torch.stack(expected, 1), rtol=0, atol=1e-4)

    def test_timm_teacher_of_images_that_are_rgb_already(self):
        """As mmpretrain's CIFAR10 gives them."""
        timm = pytest.importorskip('timm')
        model = build(
            dict(timm='test_resnet', random_init=True, input_size='as_is'),
            data_preprocessor=dict(STUDENT['data_preprocessor'], to_rgb=False),
            channel_order='RGB',
        )
        own = timm.get_pretrained_cfg('test_resnet')
        mean, std = (torch.tensor(x).view(3, 1, 1) for x in (own.mean, own.std))
        self.assert_asked(model, (batch()['inputs'] / 255 - mean) / std)

    def test_teacher_of_rgb_data_and_files_that_are_read_as_bgr(self):
        """The teacher's config leaves CIFAR-10 as it is, which says nothing about files."""
        config = 'mmpretrain::resnet/resnet18_8xb16_cifar10.py'
        head = dict(STUDENT['head'], num_classes=10)
        teacher = dict(config=config, random_init=True, channel_order='RGB')
        model = build(teacher, head=head)
        own = get_config(config).data_preprocessor
        mean, std = (torch.tensor(x).view(3, 1, 1) for x in (own.mean, own.std))
        self.assert_asked(model, (batch()['inputs'].flip(1) - mean) / std)

    @staticmethod
    def assert_asked(model, images):
        """The teacher's answer is the one that its network, called by hand, gives to images."""
        answers = []
        loss = model.head.loss
        model.head.loss = lambda *args, teacher_score: (
            answers.append(teacher_score),
            loss(*args, teacher_score=teacher_score),
        )[1]
        train_step(model)
        with torch.no_grad():
            expected = model.teacher.build()(images)
            assert not torch.allclose(expected, model.teacher.build()(images.flip(1)), rtol=1e-2)
        torch.testing.assert_close(answers, [expected], rtol=1e-3, atol=1e-4)

    def test_an_order_that_nothing_tells(self):
        options = dict(data_preprocessor=dict(STUDENT['data_preprocessor'], to_rgb=False))
        with pytest.raises(ValueError, match='student.* channel_order=None .*CIFAR10 are RGB'):
            build(mirror(), **options).init_weights()
        with pytest.raises(ValueError, match="channel_order='rgb'"):
            build(mirror(), channel_order='rgb').init_weights()
        # Evaluation asks nobody.
        build(mirror(), **options).eval().test_step(batch())

    @pytest.mark.parametrize(('input_size', 'shape'), [(48, (48, 48)), ((16, 20), (16, 20))])
    def test_resolution(self, input_size, shape):
        model = build(dict(mirror(), input_size=input_size))
        train_step(model)
        expected = F.interpolate(batch()['inputs'].float(), shape, mode='bilinear', antialias=True)
        expected = ClsDataPreprocessor(**NETWORK['data_preprocessor'])(dict(inputs=expected))
        (shown,) = model.teacher.build().shown
        torch.testing.assert_close(shown, expected['inputs'], rtol=0, atol=1e-4)

    @pytest.mark.parametrize('augment', ['Mixup', 'CutMix'])
    def test_batch_augmentations(self, augment):
        augments = dict(augments=[dict(type=augment, alpha=1.0)])
        model = build(
            mirror(),
            train_cfg=augments,
            data_preprocessor=dict(STUDENT['data_preprocessor'], num_classes=NUM_CLASSES),
        )
        own = ClsDataPreprocessor(
            **NETWORK['data_preprocessor'], num_classes=NUM_CLASSES, batch_augments=augments
        )
        set_random_seed(0)
        expected = own(batch(), training=True)['inputs']
        assert not torch.allclose(expected, own(batch())['inputs'])
        set_random_seed(0)
        train_step(model)
        (shown,) = model.teacher.build().shown
        torch.testing.assert_close(shown, expected, rtol=0, atol=1e-4)

    def test_padded_images_of_several_sizes(self):
        data = batch()
        data['inputs'] = [data['inputs'][0], data['inputs'][1][:, :20, :24], *data['inputs'][2:]]
        model = build(mirror())
        train_step(model, data)
        (shown,) = model.teacher.build().shown
        expected = ClsDataPreprocessor(**NETWORK['data_preprocessor'])(data)['inputs']
        assert shown.shape == (4, 3, 32, 32)
        torch.testing.assert_close(
            shown[1, :, :20, :24], expected[1, :, :20, :24], rtol=0, atol=1e-4
        )


class TestHowItIsAsked:
    def test_once_a_batch_in_eval_mode_without_gradients(self):
        model = build(mirror())
        model.train()
        for _ in range(3):
            train_step(model)
        assert model.teacher.build().modes == [(False, False)] * 3
        assert model.teacher.build().gain.grad is None

    def test_its_answer_is_what_the_loss_gets(self):
        model = build(mirror())
        losses = train_step(model)
        assert set(losses) == {'loss', 'loss_cls', 'loss_kd'}
        torch.testing.assert_close(losses['loss'], losses['loss_cls'] + losses['loss_kd'])
        # Another answer: the teacher's part alone changes.
        other = build(mirror(mean=[0.0, 0.0, 250.0]))
        changed = train_step(other)
        torch.testing.assert_close(changed['loss_cls'], losses['loss_cls'])
        assert changed['loss_kd'] > losses['loss_kd'] + 0.1

    def test_in_the_autocast_of_the_training(self):
        model = build(dict(model=NETWORK, random_init=True))
        model.init_weights()
        scores = []
        model.teacher.build().register_forward_hook(lambda *args: scores.append(args[2]))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        wrapper = OptimWrapper(optimizer)
        model.train_step(batch(), wrapper)
        with torch.autocast('cpu', dtype=torch.bfloat16):
            losses = model.train_step(batch(), wrapper)
        assert [score.dtype for score in scores] == [torch.float32, torch.bfloat16]
        assert losses['loss_kd'].dtype == torch.float32

    @pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
    def test_mixed_precision_on_a_gpu(self):
        model = build(dict(model=NETWORK, random_init=True)).cuda()
        model.init_weights()
        scores = []
        model.teacher.build().register_forward_hook(lambda *args: scores.append(args[2]))
        wrapper = AmpOptimWrapper(optimizer=torch.optim.SGD(model.parameters(), lr=0.01))
        losses = model.train_step(batch(), wrapper)
        assert scores[0].dtype == torch.float16 and scores[0].is_cuda
        assert losses['loss'].isfinite()

    def test_building_it_leaves_the_random_numbers_of_training_alone(self):
        drawn = []
        for model in (build(dict(model=NETWORK, random_init=True)), plain_classifier()):
            torch.manual_seed(3)
            model.init_weights()
            drawn.append(torch.rand(1))
        assert drawn[0] == drawn[1]


class TestWhereItIsNot:
    @pytest.fixture
    def model(self):
        model = build(dict(model=NETWORK, random_init=True))
        model.init_weights()
        return model

    def test_in_no_parameter_buffer_or_state(self, model):
        plain = plain_classifier()
        teacher = {id(t) for t in model.teacher.build().state_dict(keep_vars=True).values()}
        for listing in ('named_parameters', 'named_buffers', 'named_modules'):
            names = [name for name, _ in getattr(model, listing)()]
            expected = [name for name, _ in getattr(plain, listing)()]
            assert names == expected, listing
        assert model.state_dict().keys() == plain.state_dict().keys()
        assert not teacher & {id(t) for t in model.state_dict(keep_vars=True).values()}
        plain.load_state_dict(model.state_dict())

    def test_in_no_average(self, model):
        average = ExponentialMovingAverage(model)
        assert average.module.teacher.build() is model.teacher.build()
        teacher = {id(t) for t in model.teacher.build().state_dict(keep_vars=True).values()}
        assert not teacher & {id(t) for t in average.state_dict(keep_vars=True).values()}
        assert len(average.state_dict()) == len(model.state_dict()) + 1

    def test_in_no_data_parallel_bucket(self, model, tmp_path):
        dist.init_process_group(
            'gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1
        )
        try:
            wrapped = MMDistributedDataParallel(module=model)
            train_step(wrapped)
            # A second step fails if a parameter of the first has got no gradient.
            losses = train_step(wrapped)
        finally:
            dist.destroy_process_group()
        assert losses['loss_kd'].isfinite()
        assert len(list(wrapped.parameters())) == len(list(plain_classifier().parameters()))

    def test_in_no_pickle(self, model):
        unpickled = pickle.loads(pickle.dumps(model))
        assert not unpickled.teacher._built
        assert unpickled.teacher.settings == model.teacher.settings
        assert train_step(unpickled)['loss_kd'].isfinite()

    def test_in_no_folded_copy(self, model):
        before = copy.deepcopy(model.teacher.build().state_dict())
        folded = fold(model)
        assert folded.teacher.build() is model.teacher.build()
        after = model.teacher.build().state_dict()
        assert after.keys() == before.keys()
        assert all(torch.equal(value, before[name]) for name, value in after.items())
        assert train_step(folded)['loss_kd'].isfinite()


class TestMoving:
    def test_with_the_student(self):
        model = build(dict(model=NETWORK, random_init=True))
        model.init_weights()
        teacher = model.teacher.build()
        model.to(torch.float64)
        assert {p.dtype for p in teacher.parameters()} == {torch.float64}
        # No other device is at hand on every machine; this one takes no numbers.
        model.to('meta')
        assert {p.device.type for p in teacher.parameters()} == {'meta'}
        assert teacher.data_preprocessor.device.type == 'meta'

    def test_built_late_it_goes_where_the_student_is(self):
        model = build(dict(model=NETWORK, random_init=True)).double()
        model.init_weights()
        assert {p.dtype for p in model.teacher.build().parameters()} == {torch.float64}

    def test_deep_copies_share_and_do_not_move_it(self):
        model = build(dict(model=NETWORK, random_init=True))
        before = copy.deepcopy(model)
        model.init_weights()
        after = copy.deepcopy(model)
        for copied in (before, after, copy.deepcopy(after)):
            copied.to('meta').to_empty(device='cpu')
            assert copied.teacher.build() is model.teacher.build()
        assert {p.device.type for p in model.teacher.build().parameters()} == {'cpu'}
        assert train_step(model)['loss_kd'].isfinite()


class TestWithoutTeacher:
    """Evaluation needs none: neither its config file nor its checkpoint."""

    TEACHER = dict(config='nowhere/teacher.py', checkpoint='nowhere/teacher.pth')

    def test_predicts_as_the_plain_classifier(self):
        model, plain = build(self.TEACHER).eval(), plain_classifier().eval()
        plain.load_state_dict(model.state_dict())
        predictions = zip(model.test_step(batch()), plain.test_step(batch()), strict=True)
        for prediction, expected in predictions:
            assert torch.equal(prediction.pred_score, expected.pred_score)
        inputs = torch.rand(2, 3, 32, 32)
        assert torch.equal(model(inputs), plain(inputs))

    def test_training_stops_before_it_begins(self):
        model = build(self.TEACHER)
        for start in (model.init_weights, lambda: train_step(model), model.teacher.check):
            with pytest.raises(FileNotFoundError, match='nowhere/teacher.py'):
                start()


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(head=dict(STUDENT['head'], type='StackedLinearClsHead')), 'got StackedLinear'),
        (dict(head=None), 'mmgnv3.KDClsHead, got NoneType'),
        (dict(data_preprocessor=SelfSupDataPreprocessor()), 'ClsDataPreprocessor'),
    ],
    ids=['head', 'no-head', 'preprocessor'],
)
def test_parts_that_know_no_teacher_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build(mirror(), **options)
