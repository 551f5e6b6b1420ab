"""What processes send each other while they train a half-set, counted, and what follows for eight GPUs.

torchrun --nproc-per-node 2 benchmarks/traffic.py --gaussians 10000 --box 64

The account: in a step, the gradients of encoder, decoder and Gaussians are summed, four bytes each; in an inference,
the latents, covariances and energies of all particles are gathered. The program counts what it hands to messages. The
efficiency is computed from the account, not measured: a sum of S bytes over k GPUs takes 2 (k - 1) / k S / bandwidth,
and a latency.
"""

import argparse
import os
import time

import torch

from dynamight_core import processes
from dynamight_core.groups import within, world
from dynamight_core.imaging.ctf import CtfParameters
from dynamight_core.imaging.poses import random_rotations, rotation_matrices
from dynamight_core.model.gaussians import GaussianModel
from dynamight_core.model.half import HalfModel
from dynamight_core.options import TrainOptions
from dynamight_core.training.data import TrainingImages
from dynamight_core.training.epochs import run_epoch
from dynamight_core.training.half import HalfTrainer
from dynamight_core.training.schedule import Epoch

# Of one direction between GPUs of a machine (NVLink) and of machines (InfiniBand), bytes/s, and of a message, s.
NVLINK, INFINIBAND, LATENCY = 200e9, 25e9, 30e-6


class NoiseImages:
    """Images of noise."""

    def __init__(self, box):
        self.box = box

    def images(self, rows):
        return torch.randn(len(rows), self.box, self.box)

    def close(self):
        pass


def noise_trainer(n, gaussians, box, options):
    """Return a trainer of n images of noise, the same in all processes."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    positions = torch.randn(gaussians, 3, generator=generator) * box / 5
    model = HalfModel(GaussianModel(positions, 2.0, 1.0), box, 1.0, options.n_latents, options.decoder, 0.9 * box)
    ctf = CtfParameters.create(torch.full((n,), 15000.0))
    data = TrainingImages(NoiseImages(box), ctf, rotation_matrices(random_rotations(n, generator)), box, 1.0)
    trainer = HalfTrainer(model, data, torch.arange(n), options, 1)
    trainer.latents, trainer.started = torch.randn(n, options.n_latents, generator=generator), True
    return trainer


def counted(work) -> dict[str, int]:
    """Return the bytes that this process hands to messages of each kind during some work."""
    before = dict(world().sent)
    work()
    return {kind: number - before.get(kind, 0) for kind, number in world().sent.items()}


def efficiency(seconds: float, size: float, per_half: int, bandwidth: float) -> float:
    """Return the fraction of the time of a step that is not spent on its sum.

    Parameters
    ----------
    seconds
        of a step on one GPU.
    size
        of the gradients, bytes.
    per_half
        GPUs that share a half-set.
    bandwidth
        bytes/s.
    """
    own = seconds / per_half
    return own / (own + 2 * (per_half - 1) / per_half * size / bandwidth + LATENCY)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gaussians", type=int, default=10_000)
    parser.add_argument("--box", type=int, default=64)
    parser.add_argument("--particles", type=int, default=64)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    options = TrainOptions(batch_size=16)
    trainer = noise_trainer(chosen.particles, chosen.gaussians, chosen.box, options)
    model, steps = trainer.model, len(trainer.batches(1)[0])
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    with within(world()):
        started = time.perf_counter()
        epoch = counted(lambda: run_epoch(trainer, Epoch("refinement"), 1))
        inference = counted(lambda: trainer.infer(steps=1))
        seconds = time.perf_counter() - started
    if not processes.is_first():
        return
    account = 4 * trained
    d = options.n_latents
    print(f"{chosen.gaussians} Gaussians, box {chosen.box}, {processes.count()} processes, {seconds:.1f} s")
    print(f"step: {epoch['sum'] / steps / 1e6:.3f} MB summed; the account has {account / 1e6:.3f} MB")
    gathered = inference["gather"] / chosen.particles * processes.count()
    print(f"inference: {gathered:.0f} bytes gathered for a particle; the account has {4 * (d + d * d + 1)}")
    print("Expected, not measured: efficiency of the sums with eight GPUs, four for each half-set")
    print("batch   particles/s of one GPU   by NVLink   by InfiniBand")
    for batch in (128, 512):
        for rate in (10_000, 30_000):
            whole = [100 * efficiency(batch / rate, account, 4, bandwidth) for bandwidth in (NVLINK, INFINIBAND)]
            print(f"{batch:5d}   {rate:22d}   {whole[0]:7.0f} %   {whole[1]:11.0f} %")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
