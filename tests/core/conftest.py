"""Particle sets and runs that several test files share."""

import pytest
import torch

from tests.support.hinge_images import HingeImages
from tests.support.particle_files import ParticleFiles


@pytest.fixture(autouse=True)
def threads():
    """Leave the next test as many threads as this one found."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def particle_files(tmp_path):
    """An empty folder with what it takes to build particle sets."""
    return ParticleFiles(tmp_path)


@pytest.fixture(scope="session")
def hinge_set(tmp_path_factory):
    """Return the files of a small hinge data set: 600 particles, 32 pixels of 6 A, SNR 8."""
    from dynamight_core.simulate.dataset import SimulateOptions, simulate

    folder = tmp_path_factory.mktemp("hinge")
    return simulate(SimulateOptions(particles=600, box=32, pixel_size=6.0, snr=8.0, seed=1), folder)


@pytest.fixture(scope="session")
def trained(hinge_set, tmp_path_factory):
    """Return a training on the small hinge set and its run, summarised. Tests change neither's numbers."""
    from dynamight_core.judging.summary import summarise
    from dynamight_core.options import InputOptions, TrainOptions
    from dynamight_core.reporter import QUIET
    from dynamight_core.training.stage import train

    inputs = InputOptions(star=str(hinge_set.particles), map=str(hinge_set.consensus))
    options = TrainOptions(n_gaussians=500, n_latents=3)
    result = train(inputs, options, tmp_path_factory.mktemp("trained") / "run", reporter=QUIET)
    return result, summarise(result, reporter=QUIET)


@pytest.fixture(scope="session")
def paper(hinge_set, tmp_path_factory):
    """Return a short training by the paper's preset on the small hinge set, and its run, summarised."""
    from dynamight_core.judging.summary import summarise
    from dynamight_core.options import InputOptions, TrainOptions
    from dynamight_core.options.completed import completed
    from dynamight_core.reporter import QUIET
    from dynamight_core.training.stage import train

    given = {"preset": "paper", "star": str(hinge_set.particles), "map": str(hinge_set.consensus)}
    given |= {"n_gaussians": 60, "epochs": 2, "warm_up_epochs": 1}
    inputs, options = (completed(kind, given) for kind in (InputOptions, TrainOptions))
    trained = train(inputs, options, tmp_path_factory.mktemp("paper") / "run", reporter=QUIET)
    run = summarise(trained, reporter=QUIET)
    for trainer in trained.trainers:
        # As during training, when latents are the encoder's.
        trainer.latents.zero_()
    return trained, run


@pytest.fixture(scope="session")
def drawn_run(tmp_path_factory):
    """A finished run of the hinge, 400 particles: latents drawn, not learned. Tests copy it or change nothing."""
    from tools.drawn_run import make_run

    return make_run(tmp_path_factory.mktemp("drawn"), 400, n_gaussians=300)


@pytest.fixture(scope="session")
def hinge(tmp_path_factory):
    """Return simulated images of the hinge with their truth."""
    return HingeImages(tmp_path_factory.mktemp("hinge"), particles=300, snr=2.0, motion_range=30.0)


@pytest.fixture(scope="session")
def rigid_sums(hinge):
    """Return the sums of a reconstruction of them without deformation."""
    return hinge.sums()
