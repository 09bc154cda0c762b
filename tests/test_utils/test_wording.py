import pytest

from mmgnv3.utils.wording import count


@pytest.mark.parametrize(
    ('number', 'noun', 'text'),
    [
        (1, 'folder', '1 folder'),
        (0, 'image', '0 images'),
        (1, 'class', '1 class'),
        (3, 'class', '3 classes'),
    ],
)
def test_count(number, noun, text):
    assert count(number, noun) == text
