"""Half-sets and validation: the file decides, splits are seeded and balanced, relatives are never torn."""

import pytest
import torch

from dynamight_core.errors import InputError
from dynamight_core.particles.halves import assign_halves, choose_validation, torn
from dynamight_core.particles.metadata import read_particles


def particles_of(files, copies=1, **columns):
    files.stack()
    names = [f"{i // copies + 1}@particles.mrcs" for i in range(files.n)]
    return read_particles(files.star(files.rows(rlnImageName=names, **columns)))


def test_the_file_decides(particle_files):
    particles = particles_of(particle_files)
    halves, was_split = assign_halves(particles, particles.image_groups, seed=5)
    assert halves.tolist() == [1, 2] * 6 and not was_split


@pytest.mark.parametrize("copies", [1, 3])
def test_a_missing_split_is_drawn_balanced_and_by_whole_images(particle_files, copies):
    particles = particles_of(particle_files, copies, rlnRandomSubset=None)
    splits = [assign_halves(particles, particles.image_groups, seed) for seed in range(8)]
    for halves, was_split in splits:
        assert was_split
        assert halves.dtype == torch.int8
        assert (halves == 1).sum() == (halves == 2).sum() == 6
        assert all(len(halves[particles.image_groups == g].unique()) == 1 for g in particles.image_groups)
    assert torch.equal(splits[3][0], assign_halves(particles, particles.image_groups, 3)[0])
    assert len({tuple(halves.tolist()) for halves, _ in splits}) > 3


def test_an_image_in_both_halves_is_refused(particle_files):
    halves = ["1"] * 3 + ["2", "2", "1"] + ["2"] * 6
    particles = particles_of(particle_files, 3, rlnRandomSubset=halves)
    with pytest.raises(InputError, match=r"2@.*in both half-sets of rlnRandomSubset; give"):
        assign_halves(particles, particles.image_groups, seed=0)


@pytest.mark.parametrize(("value", "missing"), [("1", "2"), ("2", "1")])
def test_an_empty_half_is_refused(particle_files, value, missing):
    particles = particles_of(particle_files, rlnRandomSubset=[value] * 12)
    with pytest.raises(InputError, match=f"no particle with rlnRandomSubset {missing}; give"):
        assign_halves(particles, particles.image_groups, seed=0)


def test_one_image_cannot_be_split(particle_files):
    particles = particles_of(particle_files, 12, rlnRandomSubset=None)
    with pytest.raises(InputError, match="one image"):
        assign_halves(particles, particles.image_groups, seed=0)


def test_validation_is_a_share_of_each_half(particle_files):
    halves = torch.tensor([1] * 700 + [2] * 1300)
    groups = torch.arange(2000)
    chosen = choose_validation(halves, groups, 0.1, seed=1)
    assert (chosen[halves == 1].sum(), chosen[halves == 2].sum()) == (70, 130)
    assert torch.equal(chosen, choose_validation(halves, groups, 0.1, seed=1))
    assert not torch.equal(chosen, choose_validation(halves, groups, 0.1, seed=2))
    assert not choose_validation(halves, groups, 0.0, seed=1).any()


def test_validation_takes_whole_images():
    generator = torch.Generator().manual_seed(0)
    groups = torch.randperm(600, generator=generator) // 6
    halves = 1 + groups % 2
    chosen = choose_validation(halves, groups, 0.1, seed=3)
    assert all(chosen[groups == group].unique().numel() == 1 for group in groups.unique())
    assert 24 <= chosen[halves == 1].sum() <= 36


def test_the_choice_in_one_half_does_not_depend_on_the_other():
    groups = torch.arange(1000)
    halves = torch.tensor([1, 2]).repeat(500)
    fewer = halves.clone()
    chosen = choose_validation(halves, groups, 0.1, seed=3)
    kept = (fewer == 1) | (groups < 400)
    assert torch.equal(choose_validation(fewer[kept], groups[kept], 0.1, seed=3)[fewer[kept] == 1], chosen[halves == 1])


def test_relatives_in_both_half_sets_are_counted_and_held_out_together():
    halves = torch.tensor([1, 2] * 500)
    relatives = torch.arange(1000)
    # Of every tenth pair, both particles are relatives, in the two half-sets.
    relatives[1::20] = relatives[0::20]
    assert torn(halves, relatives).sum() == 100
    assert not torn(halves, torch.arange(1000)).any()
    chosen = choose_validation(halves, relatives, 0.2, seed=0)
    assert torch.equal(chosen[1::20], chosen[0::20])
    assert [int(chosen[halves == half].sum()) for half in (1, 2)] == pytest.approx([100, 100], abs=12)
