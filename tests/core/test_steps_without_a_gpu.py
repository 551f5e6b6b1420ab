"""Steps on a device that stands for a GPU: its tensors have a shape, but no values (PyTorch's "meta").

A tensor on the wrong device fails, and so does a step that waits for the GPU to read a value from it (`item`, a copy to
the CPU, a choice by a value, an index by a mask). Times and numbers need a GPU.
"""

import copy

import pytest
import torch

from dynamight_core.imaging.backprojection import ParticleData
from dynamight_core.imaging.voxels import bordered
from dynamight_core.options import TrainOptions
from dynamight_core.training.data import Batch
from dynamight_core.training.half import HalfTrainer
from dynamight_core.training.inference import Fit
from dynamight_core.training.losses import DeformedBatch, active_terms
from dynamight_core.training.schedule import Epoch
from tests.support.known_motion import known_motion

GPU = torch.device("meta")
N, BOX = 12, 32


@pytest.fixture
def gpu():
    """A trainer whose model and latents are on the GPU, and a function for values there."""
    model, data, latents = known_motion(40)
    trainer = HalfTrainer(model, data, torch.arange(40), TrainOptions(n_latents=2), 1)
    trainer.latents, trainer.started = latents, True
    trainer.scale_regularisation(0.2)
    trainer.rebuild_graph()
    terms = active_terms(trainer, Epoch("refinement", sparse=0.1)) | active_terms(trainer, Epoch("encoder"))
    model.to(GPU)
    for name in ("graph", "long_edges"):
        part = copy.copy(getattr(trainer, name))
        for field, value in vars(part).items():
            if isinstance(value, torch.Tensor):
                object.__setattr__(part, field, value.to(GPU))
        setattr(trainer, name, part)
    trainer.latents = latents.to(GPU)
    trainer.optimizers = {
        "gaussians": trainer.gaussian_optimizer(),
        "encoder": torch.optim.Adam(model.encoder.parameters()),
        "decoder": torch.optim.Adam(model.decoder.parameters()),
    }
    return trainer, terms


def on_gpu(*shape, dtype=torch.float32):
    return torch.empty(*shape, dtype=dtype, device=GPU)


def some_batch():
    transforms = on_gpu(N, BOX, BOX // 2 + 1, dtype=torch.complex64)
    return Batch(torch.arange(N), on_gpu(N, BOX, BOX), transforms, on_gpu(N, BOX, BOX // 2 + 1), on_gpu(N, 3, 3))


def test_a_step_of_training_stays_on_the_gpu(gpu):
    trainer, terms = gpu
    weights, noise = on_gpu(BOX, BOX // 2 + 1), on_gpu(N, 2)
    deformed = DeformedBatch(trainer, some_batch(), weights, noise, lambda deformed: deformed.encoded[0] + noise)
    parts = {name: term.part(deformed) for name, (term, _) in terms.items()}
    assert {part.device for part in parts.values()} == {GPU}
    trainer.step(sum(parts.values()), "encoder", "decoder", "gaussians")
    assert {"data", "kl", "regularity", "repulsion", "rigidity", "sparse_motion", "encoder_error"} <= parts.keys()
    assert all(parameter.grad.device == GPU for parameter in trainer.model.decoder.parameters())


def test_a_step_of_inference_stays_on_the_gpu(gpu):
    model = gpu[0].model
    with torch.no_grad():
        batch, evaluate = some_batch(), model.evaluator(model.gaussians.positions)

        def project(latents, which, transfer):
            return model.project(batch.matrices[which], transfer, model.gaussians.positions + evaluate(latents))

        fit = Fit(project, on_gpu(2), on_gpu(2, 2), batch, on_gpu(BOX, BOX // 2 + 1))
        latents = on_gpu(N, 2)
        image = fit.image(latents, fit.all)
        downhill, curvature = fit.derivatives(latents, image, fit.all)
        energy = fit.energy(latents, image, fit.all)
    assert {each.device for each in (downhill, curvature, energy)} == {GPU}


def test_a_step_of_the_linear_estimate_stays_on_the_gpu(gpu):
    model, batch = gpu[0].model, some_batch()
    positions = model.gaussians.positions.detach().repeat(N, 1, 1).requires_grad_()
    image = model.project(batch.matrices, batch.transfer, positions)
    (forces,) = torch.autograd.grad((image.real * batch.transforms.real).sum(), positions)
    assert forces.device == GPU


def test_a_step_of_reconstruction_stays_on_the_gpu(gpu):
    def values(indices):
        return on_gpu(len(indices), BOX, BOX // 2 + 1)

    data = ParticleData(lambda rows: on_gpu(len(rows), BOX, BOX), values, torch.empty(N, 3, 3), BOX, 4.0, None, GPU)
    rows = torch.arange(N)
    with torch.no_grad():
        filtered = data.transforms(rows) * data.transfer(rows) * data.weights
        grid = bordered(data.projector.reading_grid(filtered))
        poses = data.poses(rows)
        images = data.images_of(on_gpu(N, data.projector.grid_size, data.projector.grid_size))
        power = data.power(data.transfer(rows))
    assert {each.device for each in (grid, poses, images, power)} == {GPU}
