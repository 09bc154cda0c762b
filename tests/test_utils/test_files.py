import hashlib
import json

import pytest

from mmgnv3.utils.files import replacing, sha256, write_json


def test_a_file_appears_when_it_is_complete(tmp_path):
    path = tmp_path / 'new' / 'a.txt'
    with replacing(path) as temporary:
        temporary.write_text('half')
        assert not path.exists()
        assert (temporary.parent, temporary.suffix) == (path.parent, path.suffix)
        temporary.write_text('whole')
    assert path.read_text() == 'whole'
    assert list(path.parent.iterdir()) == [path]


def test_a_failure_leaves_the_old_file(tmp_path):
    path = tmp_path / 'a.txt'
    path.write_text('old')
    with pytest.raises(OSError, match='disk full'), replacing(path) as temporary:
        temporary.write_text('half')
        raise OSError('disk full')
    assert path.read_text() == 'old'
    assert list(tmp_path.iterdir()) == [path]


def test_sha256(tmp_path):
    content = bytes(range(256)) * 5000
    (tmp_path / 'a').write_bytes(content)
    assert sha256(tmp_path / 'a') == hashlib.sha256(content).hexdigest()


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path):
    path = tmp_path / 'a.json'
    write_json(dict(a=[1, None]), path)
    with pytest.raises(TypeError):
        write_json(dict(a=object()), path)
    assert json.loads(path.read_text()) == dict(a=[1, None])
    assert list(tmp_path.iterdir()) == [path]
