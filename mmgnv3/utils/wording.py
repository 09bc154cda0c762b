"""What messages are put together from."""


def count(number: int, noun: str) -> str:
    """Say how many there are: ``1 folder``, ``2 folders``, ``0 classes``.

    Args:
        number: How many.
        noun: Of what, in the singular.
    """
    plural = f'{noun}es' if noun.endswith('s') else f'{noun}s'
    return f'{number} {noun if number == 1 else plural}'
