import pytest
from mmengine.config import Config

from tests.test_engine.runs import write_configs, write_teacher


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with configs, data and a teacher, which is the working directory."""
    monkeypatch.chdir(write_configs(tmp_path))
    write_teacher(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def plain_config_text(monkeypatch):
    """Configs as they are: laying them out nicely takes half the time of such a short run."""
    monkeypatch.setattr(Config, 'pretty_text', property(lambda config: f'# {config.filename}'))
