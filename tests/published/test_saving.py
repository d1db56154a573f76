"""What a saved model is: the same pictures from another folder, with a card that says what it learned and measured."""

import json
from dataclasses import replace

import pytest
import torch

from unmask.cli import main
from unmask.decoding.sampling import Sampling
from unmask.errors import ConfigError
from unmask.pipelines.image import Pipeline
from unmask.published.card import write_model_card
from unmask.published.catalogue import MODELS
from unmask.recipes.reading import read_config
from unmask.recipes.schema import Recipe

TINY = ["--model.dim", "16", "--model.depth", "1", "--model.heads", "2", "--training.batch-size", "8"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("saving") / "run"
    main(["train", "digits", "--out", str(out), *TINY, "--device", "cpu", "--training.steps", "2"])
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_model_draws_the_same(run, tmp_path, dtype):
    pipeline = Pipeline.from_pretrained(run, device="cpu", dtype=dtype)
    pipeline.save_pretrained(tmp_path / "saved")
    again = Pipeline.from_pretrained(tmp_path / "saved", device="cpu", dtype=dtype)
    assert torch.equal(pipeline.generate(num=4), again.generate(num=4))
    assert again.classes == pipeline.classes
    saved = {name: p.dtype for name, p in again.model.named_parameters()}
    assert set(saved.values()) == {dtype}


def test_what_was_set_since_is_saved(run, tmp_path):
    pipeline = Pipeline.from_pretrained(run, device="cpu")
    pipeline.sampling = Sampling(steps=3)
    pipeline.save_pretrained(tmp_path)
    assert Pipeline.from_pretrained(tmp_path, device="cpu").sampling == Sampling(steps=3)


def test_the_card_says_what_is_known(run, tmp_path):
    (run / "report.json").write_text(json.dumps({"frechet": 1.25, "num_samples": 77, "of no interest": 5}))
    Pipeline.from_pretrained(run, device="cpu").save_pretrained(tmp_path, licence="mit")
    card = (tmp_path / "README.md").read_text()
    _, front, body = card.split("---\n", 2)
    assert "library_name: unmask\n" in front
    assert "license: mit\n" in front
    training_data = f"* Training data: {read_config(run / 'config.json', Recipe).trained_on}\n"
    assert "1,500 images of 10 classes: scikit-learn's handwritten digits" in training_data
    for word in (training_data, "8x8", "| frechet | 1.25 |", "| num_samples | 77 |", "steps 8", "2 steps of 8"):
        assert word in body, word
    assert "of no interest" not in card
    (run / "report.json").unlink()


def test_the_card_of_a_published_model_invents_no_training(tmp_path):
    card = write_model_card(MODELS["maskgit-256"].spec, name="FOLDER", licence=None, measured=tmp_path)
    assert "* Training data: ImageNet\n* Training: not stated\n" in card
    assert "unconditional" not in card
    assert "- class-conditional-image-generation\n" in card
    assert "Config" not in card
    assert " steps of " not in card
    prompted = write_model_card(MODELS["amused-256"].spec, name="FOLDER", licence=None, measured=tmp_path)
    assert 'unmask.load("FOLDER", prompts=["a cat"])(num=4)' in prompted
    assert "pipeline_tag: text-to-image\n" in prompted


def test_a_card_without_a_licence_says_so(run, tmp_path):
    Pipeline.from_pretrained(run, device="cpu").save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "not stated" in card
    assert "license:" not in card


@pytest.mark.parametrize("source", ["MaskGIT_ImageNet_256.pth", "downloads/of mine/MaskGIT_ImageNet_256.pth"])
def test_the_card_of_a_converted_model_names_its_file(run, tmp_path, source):
    spec = replace(Pipeline.from_pretrained(run, device="cpu").spec, trained_on=None)
    (tmp_path / "model-conversion.txt").write_text(f"source: {source}\nparameters: 7 as float32\n")
    card = write_model_card(spec, name="mine", licence=None, measured=tmp_path)
    assert "* Training data: not stated; converted from MaskGIT_ImageNet_256.pth\n" in card


def test_a_pipeline_made_by_hand_is_not_saved(run, tmp_path):
    loaded = Pipeline.from_pretrained(run, device="cpu")
    with pytest.raises(ConfigError, match="by hand"):
        Pipeline(loaded.model, loaded.tokenizer, loaded.sampling).save_pretrained(tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_compiling_is_of_the_network_and_needs_a_compiler(run, monkeypatch):
    pipeline, compiled = Pipeline.from_pretrained(run, device="cpu"), []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compiled.append(module))
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/g++" if name == "g++" else None)
    pipeline.compile()
    assert compiled == [pipeline.model]
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(ConfigError, match="install g"):
        pipeline.compile()


class Hub:
    """What of huggingface_hub.HfApi is used."""

    calls: list[tuple] = []  # noqa: RUF012
    error: Exception | None = None

    def __init__(self, token=None):
        self.token = token

    def create_repo(self, repo, private, exist_ok):
        if self.error:
            raise self.error
        self.calls.append(("create", repo, private, exist_ok, self.token))
        return f"https://hub/{repo}"

    def upload_folder(self, repo_id, folder_path):
        assert f'unmask.load("hf-hub:{repo_id}")' in (folder_path / "README.md").read_text()
        self.calls.append(("upload", repo_id, sorted(path.name for path in folder_path.iterdir())))


def test_push_to_hub_uploads_the_folder(run, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub, "HfApi", Hub)
    monkeypatch.setattr(Hub, "calls", [])
    pipeline = Pipeline.from_pretrained(run, device="cpu")
    assert pipeline.push_to_hub("me/digits", private=True, token="secret") == "https://hub/me/digits"
    assert Hub.calls == [
        ("create", "me/digits", True, True, "secret"),
        ("upload", "me/digits", ["README.md", "config.json", "manifest.json", "model.safetensors"]),
    ]
    monkeypatch.setattr(Hub, "error", OSError("401 Unauthorized\nmany more lines"))
    with pytest.raises(ConfigError, match=r"^cannot upload to me/digits: 401 Unauthorized$"):
        pipeline.push_to_hub("me/digits")
