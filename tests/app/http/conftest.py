"""A page with two tiny models, served over HTTP."""

import pytest

pytest.importorskip("gradio", reason="the page needs gradio (the extra app)")


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """A folder with an image model and a text model."""
    from toy_page import copy_models

    return copy_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def served(models, tmp_path_factory):
    """A page that offers them."""
    from toy_page import open_page

    with open_page(models, tmp_path_factory.mktemp("served")) as opened:
        yield opened


@pytest.fixture
def page(served):
    """A newly opened page."""
    from toy_page import Page

    with Page(served.address) as opened:
        yield opened
