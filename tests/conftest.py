"""One thread per test process, since the tests share a few cores; and no test fails because a machine is slow.

The fixtures are published models of toy size. Nothing of unmask is imported before its types are checked.
"""

import gc
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from PIL import Image

torch.set_num_threads(1)
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")
# Children of a test find the toys too, as pytest does by `pythonpath`.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(Path(__file__).parent / "toys"), *filter(None, [os.environ.get("PYTHONPATH")])]
)


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """No test finds what the user's cache folder holds; the tests of a process share theirs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNMASK_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """The weight files of toy-32, in the published layout."""
    from published_toys import write_files

    return write_files(tmp_path_factory.mktemp("files"))


@pytest.fixture
def toys(tmp_path, monkeypatch):
    """The catalogue with an empty cache."""
    from published_toys import catalogue

    catalogue(monkeypatch, tmp_path / "cache")
    return tmp_path / "cache/models"


@pytest.fixture(scope="session")
def converted(files, tmp_path_factory):
    """A cache with all of the catalogue's toys."""
    from published_toys import convert_all

    return convert_all(files, tmp_path_factory.mktemp("ready"))


@pytest.fixture
def ready(converted, monkeypatch):
    """The catalogue with that cache; its folder of models."""
    from published_toys import catalogue

    catalogue(monkeypatch, converted)
    return converted / "models"


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 256, (45, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """A folder of pictures of two classes."""
    from published_toys import draw_photos

    return draw_photos(tmp_path_factory.mktemp("photos") / "photos", ["sand", "sea"])


@pytest.fixture(scope="session")
def coded(converted, photos, tmp_path_factory):
    """Folders of codes by toy-32's tokenizer: "two" classes, "three" and "none"; and "judge", a classifier."""
    from published_toys import code_all

    return code_all(converted, photos, tmp_path_factory.mktemp("coded"))


SLOW = {
    "test_checkpoint", "test_cli", "test_cli_inpaint", "test_cli_text", "test_distributed", "test_experiment",
    "test_export", "test_finetune", "test_gpu_benchmark", "test_hostile_texts", "test_hostile_weights", "test_loop",
    "test_class_shares", "test_compile", "test_measured_elsewhere",
    "test_memory", "test_photos", "test_published", "test_published_full", "test_published_pictures",
    "test_published_sampling", "test_published_texts", "test_published_training", "test_quality", "test_sweeping",
    "test_text_data", "test_tokenizer_loop", "test_tokenizing", "test_inception", "test_embedders", "test_api",
    "test_startup", "test_completion", "test_faults", "test_flag_table",
    "test_ending", "test_ranks", "test_workers", "test_example", "test_hub_models", "test_codes", "test_pretrained_ids",
    "test_windows", "test_resuming", "test_packed", "test_changed_data", "test_progress", "test_provenance",
    "test_background_saving", "test_opening", "test_tutorial_runs", "test_closed", "test_jobs", "test_starting",
    "test_space", "test_browser", "test_page_editing", "test_page_writing",
}  # fmt: skip
"""Files with tests that take over 5 seconds: trainings, processes of their own, networks at full size."""


LONGEST = {"test_quality", "test_published_full", "test_distributed", "test_photos"}
"""Files that start first, so that no process waits for them at the end."""


def pytest_collection_finish():
    """Let garbage collection pass over what stays to the end: that saves half a second each time."""
    gc.freeze()


def pytest_collection_modifyitems(items):
    """Mark what `make test-fast` leaves out, and start with the files that take longest."""
    items.sort(key=lambda item: item.path.stem not in LONGEST)
    for item in items:
        if item.path.stem in SLOW:
            item.add_marker(pytest.mark.slow)
