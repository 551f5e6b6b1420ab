"""Images that were multiplied by their CTF are told from those that were not, whatever their metadata say."""

import dataclasses

import pytest
import starfile
import torch

from dynamight_core.errors import InputError
from dynamight_core.imaging.ctf import evaluate_ctf
from dynamight_core.imaging.fourier import fourier_to_image, image_to_fourier
from dynamight_core.options import InputOptions, TrainOptions
from dynamight_core.particles.images import ImageReader
from dynamight_core.particles.metadata import read_particles
from dynamight_core.particles.premultiplication import MULTIPLIED, NOT_MULTIPLIED, power_at_ctf_zeros
from dynamight_core.training.read import read_inputs


class Multiplied(ImageReader):
    """Reads images as if they had been multiplied by their CTF."""

    def read(self, indices):
        p = self.particles
        ctf = evaluate_ctf(p.ctf[indices], p.box, p.pixel_size)
        return fourier_to_image(image_to_fourier(super().read(indices)) * ctf, p.box)


def test_power_at_the_zeros_of_the_ctf_tells_both_kinds_apart(hinge_set):
    particles = read_particles(hinge_set.particles)
    assert power_at_ctf_zeros(ImageReader(particles), 0) > 0.9 > NOT_MULTIPLIED
    assert power_at_ctf_zeros(Multiplied(particles), 0) < 0.1 < MULTIPLIED


def test_nothing_is_told_of_images_with_one_ctf(hinge_set):
    particles = read_particles(hinge_set.particles)
    alike = {
        field.name: getattr(particles.ctf, field.name)[:1].expand_as(getattr(particles.ctf, field.name)).clone()
        for field in dataclasses.fields(particles.ctf)
    }
    particles.ctf = type(particles.ctf)(**alike)
    assert torch.equal(particles.ctf.defocus_u[0], particles.ctf.defocus_u[-1])
    assert power_at_ctf_zeros(ImageReader(particles), 0) is None


def test_a_run_refuses_what_contradicts_the_metadata_and_obeys_the_user_with_a_warning(hinge_set):
    tables = starfile.read(hinge_set.particles)
    tables["optics"]["rlnCtfDataAreCtfPremultiplied"] = 1
    wrong = hinge_set.particles.with_name("said_to_be_premultiplied.star")
    starfile.write(tables, wrong)
    options = TrainOptions(n_gaussians=100)
    with pytest.raises(InputError, match=r"do not appear to be .* set --no-premultiplied"):
        read_inputs(InputOptions(star=str(wrong), map=str(hinge_set.consensus)), options)
    said = read_inputs(InputOptions(star=str(wrong), map=str(hinge_set.consensus), premultiplied=False), options)
    assert not any("multiplied" in warning for warning in said.warnings)
    insisted = read_inputs(InputOptions(star=str(wrong), map=str(hinge_set.consensus), premultiplied=True), options)
    assert any("against --premultiplied" in warning for warning in insisted.warnings)
