import pytest
from support.surrogates import tiny_encoder


@pytest.fixture
def encoder():
    return tiny_encoder()


@pytest.fixture
def make_encoder():
    return tiny_encoder
