"""Decoders and loss terms: what every decoder promises, and what one file and one entry point add."""

import json
import re
from importlib.metadata import EntryPoint
from pathlib import Path

import pandas as pd
import pytest
import torch

import dynamight_core
from dynamight_core import registry
from dynamight_core.errors import InputError
from dynamight_core.model.bodies import RigidBodies
from dynamight_core.model.decoders.base import Decoder, DecoderInputs
from dynamight_core.model.gaussians import GaussianModel
from dynamight_core.model.half import HalfModel
from dynamight_core.options import TrainOptions
from dynamight_core.registry import DECODERS, Registry
from tests.support.extension import extended_engine

ENGINE = Path(dynamight_core.__file__).parent
BOX, PIXEL, LATENTS = 24, 5.0, 3


def points(n=40):
    return torch.randn(n, 3, generator=torch.Generator().manual_seed(0)) * 15


def two_bodies():
    z = torch.arange(BOX)[:, None, None].expand(BOX, BOX, BOX).numpy()
    masks = [((z >= low) & (z < low + 7)).astype("float32") for low in (5, 12)]
    return RigidBodies.from_masks(masks, PIXEL, masks[0] + masks[1] > 0)


def model(name):
    torch.manual_seed(0)
    return HalfModel(GaussianModel(points(), 6.0, 1.0), BOX, PIXEL, LATENTS, name, 100.0, None, two_bodies())


@pytest.fixture(params=DECODERS)
def half(request):
    return model(request.param)


def moved(half):
    """Let the decoder move what it can, at random."""
    with torch.no_grad():
        for parameter in half.decoder.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return half


def test_every_decoder_starts_without_motion_and_can_be_trained(half):
    latents = torch.randn(4, LATENTS)
    displacements = half.displacements(latents)
    assert displacements.shape == (4, 40, 3)
    assert not displacements.any()
    (displacements - 1).square().sum().backward()
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in half.decoder.parameters())


def test_every_decoder_is_differentiable_in_latents_and_positions(half):
    latents, positions = torch.randn(4, LATENTS).requires_grad_(), points().requires_grad_()
    moved(half).decoder.displacements(latents, positions).square().sum().backward()
    assert latents.grad.any() and positions.grad.any()


def test_every_decoder_comes_back_from_a_file(half, tmp_path):
    moved(half).decoder.absorb(torch.randn(2, LATENTS))
    half.save(tmp_path / "model.safetensors")
    loaded = HalfModel.load(tmp_path / "model.safetensors")
    latents = torch.randn(4, LATENTS)
    assert torch.equal(loaded.displacements(latents), half.displacements(latents))
    assert loaded.decoder.built_from(two_bodies())


def test_every_decoder_says_what_it_costs_and_restrains(half):
    decoder = half.decoder
    assert decoder.seconds_per_gaussian > 0 and decoder.bytes_per_gaussian > 0
    if decoder.has_prior:
        assert decoder.prior_energy(torch.randn(4, LATENTS)).shape == ()
    basis = decoder.linear_basis(points())
    assert basis is None or basis.shape[1:] == (40, 3)


def test_a_decoder_of_bodies_needs_them():
    with pytest.raises(ValueError, match="built from bodies"):
        DECODERS.load("bodies").build(DecoderInputs(LATENTS, BOX, PIXEL))


def test_only_the_registry_knows_decoders_by_name():
    """No other module asks which decoder it has: the question is put to the decoder."""
    asked = re.compile(r"decoder(_name)?[\"'\])]*\s*(==|!=|in\b)|isinstance\([^)]*decoder", re.IGNORECASE)
    inside = ENGINE / "model" / "decoders"
    found = [
        f"{path.relative_to(ENGINE)}: {line.strip()}"
        for path in ENGINE.rglob("*.py")
        if inside not in path.parents
        for line in path.read_text().splitlines()
        if asked.search(line) and not line.lstrip().startswith(("#", "for "))
    ]
    assert found == []


def test_a_model_whose_decoder_is_not_installed_says_so(tmp_path, monkeypatch):
    half = model("basis")
    half.decoder_name = "breathing"
    half.save(tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"no decoder 'breathing'; choose one of basis, .* install the package"):
        HalfModel.load(tmp_path / "model.safetensors")


def test_names_of_the_engine_cannot_be_taken(monkeypatch):
    other = EntryPoint("basis", "os:getcwd", DECODERS.group)
    monkeypatch.setattr(registry, "entry_points", lambda group: [other])
    found = Registry(
        "decoder", DECODERS.group, {"basis": ("basis", "dynamight_core.model.decoders.basis:BasisDecoder")}
    )
    assert list(found) == ["basis"]
    assert issubclass(found.load("basis"), Decoder)


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    return extended_engine(tmp_path_factory.mktemp("site"))


def test_help_and_schema_have_what_other_packages_add(extended):
    text = extended("train", "--help-all").stdout
    assert "Also installed: breathing." in text
    assert "Also installed: drift." in text
    decoder = json.loads(extended("options").stdout)["$defs"]["train"]["properties"]["decoder"]
    assert decoder["enum"] == ["basis", "coordinate", "bodies", "breathing"]
    assert decoder["choice_labels"][-1] == "breathing"


def test_a_decoder_and_a_loss_term_from_elsewhere_train(extended, hinge_set, tmp_path):
    folder = tmp_path / "run"
    inputs = (hinge_set.particles, folder, "--map", hinge_set.consensus)
    quick = "--n-gaussians 100 --n-latents 2 --epochs 2 --warm-up-epochs 1 --refits 0 --threads 1".split()
    ended = extended("train", *inputs, *quick, "--decoder", "breathing", "--loss-weights", "drift=0.5")
    assert ended.returncode == 0, ended.stderr
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        assert set(line["losses"]) == set(line["weights"])
        refined = line["kind"] == "refinement"
        assert ("drift" in line["losses"]) == refined
        assert line["data"] == line["losses"]["data"]
        if refined:
            assert line["losses"]["drift"] > 0
            assert line["weights"]["drift"] == 0.5
    assert "Drift" in set(pd.read_csv(folder / "training_curves.csv")["curve"])
    ended = extended("analyse", folder, "--embedding", "pca")
    assert ended.returncode == 0, ended.stderr


def test_names_that_no_package_adds_are_refused_with_those_there_are(extended, hinge_set, tmp_path):
    inputs = (hinge_set.particles, tmp_path / "run", "--map", hinge_set.consensus)
    ended = extended("train", *inputs, "--decoder", "helix")
    assert ended.returncode == 2
    assert "basis, coordinate, bodies, breathing" in ended.stderr
    ended = extended("train", *inputs, "--loss-weights", "stretch=1")
    assert ended.returncode == 2
    assert "no loss term 'stretch'; choose one of drift" in ended.stderr


@pytest.mark.parametrize("word", ["drift", "drift=much", "drift=-1", "drift=nan"])
def test_the_weight_of_a_loss_term_is_a_name_and_a_number(word):
    with pytest.raises(InputError, match=f"--loss-weights has '{word}'; give NAME=VALUE"):
        TrainOptions(loss_weights=f"other=2,{word}")
