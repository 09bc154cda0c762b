"""Tests of what is installed: a wheel of the checkout, one of its sdist, and the lazy package."""

import importlib.util
import re
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from mmengine.config import Config
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import mmgnv3

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ('configs', 'mmgnv3', 'requirements', 'tests', 'tools')
FILES = (
    'LICENSE',
    'MANIFEST.in',
    'README.md',
    'model-index.yml',
    'pyproject.toml',
    'setup.py',
)
OPENMMLAB = re.compile(r'(onedl-)?(mm(cv|engine|det|detection|pretrain)|mim|openmim)(-.*)?')


def run_python(*arguments, cwd=ROOT):
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, check=True
    ).stdout


def build_wheel(source, folder):
    run_python(
        *('-m', 'pip', 'wheel', '--quiet', '--no-deps', '--no-build-isolation', '--no-index'),
        *('-w', str(folder), str(source)),
    )
    (wheel,) = folder.glob('*.whl')
    return wheel


def contents(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return sorted(archive.namelist())


def read_requirements(name):
    lines = (ROOT / 'requirements' / f'{name}.txt').read_text().splitlines()
    return {str(Requirement(line)) for line in lines if line and not line.startswith('#')}


@pytest.fixture(scope='module')
def checkout(tmp_path_factory):
    """A copy of the checkout, as it is, with a leftover of an earlier build."""
    copy = tmp_path_factory.mktemp('checkout') / 'mmgnv3'
    for name in SOURCES:
        ignored = shutil.ignore_patterns('__pycache__')
        shutil.copytree(ROOT / name, copy / name, ignore=ignored)
    for name in filter(lambda name: (ROOT / name).exists(), FILES):
        shutil.copy(ROOT / name, copy)
    stale = copy / 'build' / 'lib' / 'mmgnv3' / '.mim' / 'configs' / 'renamed_since.py'
    stale.parent.mkdir(parents=True)
    stale.touch()
    return copy


@pytest.fixture(scope='module')
def wheel(checkout, tmp_path_factory):
    return build_wheel(checkout, tmp_path_factory.mktemp('wheel'))


@pytest.fixture(scope='module')
def metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith('.dist-info/METADATA'))
        return Parser().parsestr(archive.read(name).decode())


def test_wheel_contents(wheel):
    names = contents(wheel)
    expected = {path.relative_to(ROOT).as_posix() for path in (ROOT / 'mmgnv3').rglob('*.py')}
    for folder in ('configs', 'tools'):
        paths = (path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob('*.py'))
        expected |= {f'mmgnv3/.mim/{path}' for path in paths if path != 'tools/setup_env.py'}
    expected |= {
        path.relative_to(ROOT).as_posix() for path in (ROOT / 'mmgnv3' / 'ops' / 'csrc').iterdir()
    }
    expected |= {'mmgnv3/.mim/model-index.yml', 'mmgnv3/.mim/configs/ghostnetv3/metafile.yml'}
    assert {name for name in names if '.dist-info/' not in name} == expected
    assert any(name.endswith('.dist-info/licenses/LICENSE') for name in names)


def test_a_config_is_given_to_mim_by_its_path_in_the_wheel(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    config = Config.fromfile(tmp_path / 'mmgnv3/.mim/configs/retinanet_gnv3.py')
    assert config.model.backbone.type == 'mmgnv3.GhostNetV3'


def test_wheel_of_an_sdist(checkout, wheel, tmp_path):
    folder = tmp_path / 'sdist'
    backend = f'from setuptools import build_meta; build_meta.build_sdist({str(folder)!r})'
    folder.mkdir()
    run_python('-c', backend, cwd=checkout)
    (sdist,) = folder.iterdir()
    assert contents(build_wheel(sdist, tmp_path)) == contents(wheel)


def test_metadata(metadata):
    assert metadata['Name'] == 'mmgnv3'
    assert metadata['Version'] == mmgnv3.__version__


def test_description_has_no_links_into_the_checkout(metadata):
    links = re.findall(r'\]\(([^)]*)\)', metadata.get_payload())
    assert links and all(link.startswith('https://') for link in links), links


def test_supported_pythons_are_those_of_the_set_up(metadata):
    path = ROOT / 'tools' / 'setup_env.py'
    spec = importlib.util.spec_from_file_location('setup_env', path)
    setup_env = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(setup_env)
    supported = SpecifierSet(metadata['Requires-Python'])
    for minor in range(6, 20):
        assert (f'3.{minor}' in supported) == (setup_env.unsupported_python((3, minor)) == '')


@pytest.mark.parametrize('extra', ['onedl', 'openmmlab', 'dev'])
def test_extras_are_the_pins(metadata, extra):
    requirements = map(Requirement, metadata.get_all('Requires-Dist'))
    found = set()
    for requirement in requirements:
        if requirement.marker and requirement.marker.evaluate({'extra': extra}):
            requirement.marker = None
            found.add(str(requirement))
    assert found == read_requirements(extra)


def test_neither_line_of_openmmlab_is_forced_on_anybody(metadata):
    required = [Requirement(line) for line in metadata.get_all('Requires-Dist')]
    names = [requirement.name for requirement in required if not requirement.marker]
    assert 'torch' in names
    assert [name for name in names if OPENMMLAB.fullmatch(name)] == []


def test_extras_do_not_mix_the_lines():
    lines = {
        name: {Requirement(line).name for line in read_requirements(name)}
        for name in ('onedl', 'openmmlab')
    }
    onedl, openmmlab = (
        {name for name in names if OPENMMLAB.fullmatch(name)} for names in lines.values()
    )
    assert len(onedl) == len(openmmlab) == 5
    assert all(name.startswith('onedl-') for name in onedl)
    assert not any(name.startswith('onedl-') for name in openmmlab)


def test_import_costs_nothing():
    code = (
        'import sys, mmgnv3; dir(mmgnv3);'
        'heavy = {"torch", "mmcv", "mmengine", "mmdet", "mmpretrain", "numpy", "cv2"};'
        'print(sorted(heavy & set(sys.modules)), mmgnv3.__version__)'
    )
    assert run_python('-c', code).strip() == f'[] {mmgnv3.__version__}'


def test_lazy_names():
    from mmgnv3.models import GhostNetV3

    assert mmgnv3.GhostNetV3 is GhostNetV3
    assert set(mmgnv3.__all__) <= set(dir(mmgnv3))
    for name in mmgnv3.__all__:
        assert getattr(mmgnv3, name)


def test_unknown_name():
    with pytest.raises(AttributeError, match="module 'mmgnv3' has no attribute 'GhostNetV9'"):
        _ = mmgnv3.GhostNetV9
    assert not hasattr(mmgnv3, 'GhostNetV9')
