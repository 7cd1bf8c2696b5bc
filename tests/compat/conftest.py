import pytest

from paddleseg_ext import compat


@pytest.fixture(scope="session", autouse=True)
def mended_paddleseg():
    compat.apply()
