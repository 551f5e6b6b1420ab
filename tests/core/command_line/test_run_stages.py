"""The command line from a STAR file to maps and a report, and the demonstration."""

import re
import shutil
from pathlib import Path

import gemmi
import mrcfile
import numpy as np
import pandas as pd
import pytest
import starfile
import torch

from dynamight_core.config import RunConfig
from dynamight_core.files import read_map, write_map
from dynamight_core.imaging.fourier import resample_image, resample_volume
from dynamight_core.run import Run
from tests.support.command_line import BOX, PIXEL, N, dynamight


def test_a_trained_run_has_results_for_every_particle_in_input_order(data, trained):
    given = starfile.read(data.particles)["particles"]
    found = starfile.read(trained / "particles.star")["particles"]
    assert list(found["rlnImageName"]) == list(given["rlnImageName"])
    assert set(given) <= set(found)
    assert (found["dynHalf"] == given["rlnRandomSubset"]).all()
    for column in ("dynValidation", "dynLatent1", "dynLatent2", "dynMotion1", "dynMotionRms", "dynMotionError"):
        assert np.isfinite(found[column]).all()
    assert {"config.yaml", "metrics.jsonl", "half1", "half2"} <= {path.name for path in trained.iterdir()}


def test_reconstruct_writes_maps_on_the_grid_of_the_consensus_and_says_the_resolution(trained):
    code, text = dynamight("reconstruct", trained, "--threads", "1", "--overwrite")
    assert code == 0, text
    claim = r"[\d.]+ A \([\d.]+ A\)"
    assert re.search(rf"Resolution at FSC 0\.143: {claim} with motion corrected, {claim} without", text)
    for name in ("half1_unfil", "half2_unfil", "map", "mask", "rigid/map"):
        volume, pixel_size = read_map(trained / "reconstruction" / f"{name}.mrc")
        assert volume.shape == (BOX,) * 3
        assert pixel_size == pytest.approx(PIXEL)
    blocks = starfile.read(trained / "reconstruction" / "fsc.star")
    curves, general = blocks["fsc"], blocks["general"]
    assert {"rlnFourierShellCorrelationCorrected", "dynModelConsensus", "dynModelMap"} <= set(curves)
    assert (curves["dynResidualMotionCoherence"] <= 1 + 1e-6).all()
    assert general["dynResolutionAtLeast"] >= general["rlnFinalResolution"] - 1e-6
    assert Run(trained).config.stages["reconstruct"]["method_used"] == "wbp"
    code, text = dynamight("reconstruct", trained)
    assert code == 2
    assert "--overwrite" in text


def test_reconstruct_by_least_squares_in_a_particles_frame_with_regions(trained, data, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    volume, pixel_size = read_map(data.consensus)
    part = np.zeros_like(volume)
    part[8:24, 8:24, 8:24] = 1
    write_map(tmp_path / "part.mrc", part, pixel_size)
    masks = tmp_path / "others"
    masks.mkdir()
    beside = np.zeros_like(part)
    beside[:4, :4, :4] = 1
    kinds = {"faint": 0.1 * part, "empty": 0 * part, "beside": beside, "part": part, "one half": part}
    for name, mask in kinds.items():
        write_map(masks / f"{name}.mrc", mask, pixel_size)
    write_map(masks / "fine.mrc", part, pixel_size / 2)
    arguments = ["reconstruct", run, "--overwrite", "--method", "cg", "--steps", "1", "--local-resolution"]
    regions = ["--regions", tmp_path / "part.mrc", "--regions", masks / "one half.mrc"]
    # So short a training finds nothing that images support.
    code, text = dynamight(*arguments, "--conformation", "particle:3", *regions)
    assert code == 2 and "motion is not supported" in text
    code, text = dynamight(*arguments, "--conformation", "particle:3", "--no-shrink", *regions)
    assert code == 0, text
    assert "In part: " in text and "least squares" in text
    curves = starfile.read(run / "reconstruction" / "fsc.star")["fsc"]
    regional = ("dynRegion", "dynRegionModel", "dynRegionAtLeast")
    assert {f"{kind}_{name}" for kind in regional for name in ("part", "one_half")} <= set(curves)
    assert (curves["dynRegionAtLeast_part"] <= curves["dynRegion_part"] + 1e-6).all()
    assert {"map_sharpened.mrc", "local_resolution.mrc"} <= {path.name for path in (run / "reconstruction").iterdir()}
    # A map in another frame has no rigid map to be compared with.
    assert not (run / "reconstruction" / "rigid").exists()
    for wrong, sentence in (
        (("--mask", masks / "faint.mrc"), "is empty"),
        (("--mask", masks / "empty.mrc"), "is empty"),
        (("--mask", masks / "beside.mrc"), "holds 0.0 % of the molecule's density"),
        (("--mask", masks / "fine.mrc"), "resample it"),
        (("--regions", masks / "beside.mrc"), "holds 0.0 % of the molecule's density"),
        (
            ("--regions", masks / "part.mrc", "--regions", tmp_path / "part.mrc"),
            "two files of --regions are called part",
        ),
        (("--conformation", "particle:0"), "--conformation is 'particle:0'"),
        (("--method", "sirt"), "choose one of auto, wbp, cg"),
    ):
        code, text = dynamight("reconstruct", run, "--overwrite", *wrong)
        assert code == 2 and sentence in text, text
    code, text = dynamight("reconstruct", run, "--overwrite", "--no-rigid", "--mask", tmp_path / "part.mrc")
    found = re.search(r"cuts off (\d+) % of the molecule's density", text)
    assert code == 0 and found, text
    # The consensus itself, where it is above its noise, loses as much.
    density = np.where(volume > 0.2 * volume.max(), volume, 0)
    assert int(found[1]) == pytest.approx(100 * density[part == 0].sum() / density.sum(), abs=8)


def test_reconstruct_refuses_particles_of_another_size_than_the_deformations(trained, data, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    blocks = starfile.read(data.particles)
    blocks["optics"]["rlnImagePixelSize"] = 1.2 * PIXEL
    blocks["particles"]["rlnImageName"] = [
        name.replace("@", f"@{data.particles.parent}/") for name in blocks["particles"]["rlnImageName"]
    ]
    starfile.write(blocks, tmp_path / "other.star")
    config = RunConfig.read(run)
    config.inputs.star = str(tmp_path / "other.star")
    config.write(run)
    code, text = dynamight("reconstruct", run, "--overwrite")
    assert code == 2
    assert f"trained in a box of {BOX * PIXEL:.1f} A" in text and f"have a box of {1.2 * BOX * PIXEL:.1f} A" in text


def test_particles_binned_after_training_are_reconstructed_with_the_deformations_in_angstrom(trained, data, tmp_path):
    run, box = tmp_path / "run", 24
    shutil.copytree(trained, run)
    with mrcfile.open(data.stack) as stack:
        binned = resample_image(torch.from_numpy(stack.data.copy()), box)
    with mrcfile.new(tmp_path / "binned.mrcs") as stack:
        stack.set_data(binned.numpy())
        stack.set_image_stack()
    blocks = starfile.read(data.particles)
    blocks["optics"]["rlnImagePixelSize"], blocks["optics"]["rlnImageSize"] = BOX / box * PIXEL, box
    names = blocks["particles"]["rlnImageName"]
    blocks["particles"]["rlnImageName"] = [name.replace("particles.mrcs", "binned.mrcs") for name in names]
    starfile.write(blocks, tmp_path / "binned.star")
    config = RunConfig.read(run)
    config.inputs.star = str(tmp_path / "binned.star")
    config.write(run)
    code, text = dynamight("reconstruct", run, "--overwrite", "--no-rigid")
    assert code == 0, text
    volume, pixel_size = read_map(run / "reconstruction" / "map.mrc")
    assert volume.shape == (box,) * 3 and pixel_size == pytest.approx(BOX / box * PIXEL)
    whole = resample_volume(torch.from_numpy(read_map(data.consensus)[0]), box).numpy()
    assert np.corrcoef(volume.ravel(), whole.ravel())[0, 1] > 0.7


def test_reconstruct_through_the_inverse_field_gives_nearly_the_same_map(trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    code, text = dynamight("reconstruct", run, "--through-inverse", "--overwrite")
    assert code == 2
    assert "dynamight invert" in text
    assert dynamight("reconstruct", run, "--no-rigid", "--overwrite")[0] == 0
    exact, _ = read_map(run / "reconstruction" / "map.mrc")
    assert dynamight("invert", run, "--epochs", "10")[0] == 0
    assert dynamight("reconstruct", run, "--through-inverse", "--no-rigid", "--overwrite")[0] == 0
    approximate, _ = read_map(run / "reconstruction" / "map.mrc")
    assert np.corrcoef(exact.ravel(), approximate.ravel())[0, 1] > 0.95


def test_analyse_writes_one_report(trained):
    code, text = dynamight("analyse", trained, "--embedding", "pca")
    assert code == 0, text
    page = (trained / "analysis" / "report.html").read_text()
    assert "<html" in page


def test_analyse_writes_the_motion_as_a_map_and_as_atoms_where_the_header_places_the_map(data, trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    placed = tmp_path / "placed.mrc"
    volume, pixel_size = read_map(data.consensus)
    write_map(placed, volume, pixel_size, (-96.0, 12.0, 0.0))
    config = RunConfig.read(run)
    config.inputs.map = str(placed)
    config.write(run)
    code, text = dynamight("analyse", run, "--embedding", "pca")
    assert code == 0, text
    code, text = dynamight("reconstruct", run, "--overwrite", "--no-rigid")
    assert code == 0, text

    opened = Run(run)
    with mrcfile.open(run / "reconstruction" / "map.mrc", header_only=True) as mrc:
        assert [float(mrc.header.origin[axis]) for axis in "xyz"] == [-96.0, 12.0, 0.0]
    with mrcfile.open(run / "analysis" / "motion.mrc") as mrc:
        motion, origin = mrc.data.copy(), [float(mrc.header.origin[axis]) for axis in "xyz"]
    assert origin == [-96.0, 12.0, 0.0]
    assert motion.shape == (BOX,) * 3
    assert motion[0, 0, 0] == 0, "there is no molecule in the corner"
    for half in (1, 2):
        # Kept: its atoms do not outlive it.
        structure = gemmi.read_structure(str(run / "analysis" / f"gaussians_half{half}.cif"))
        atoms = [cra.atom for cra in structure[0].all()]
        found = np.array([atom.pos.tolist() for atom in atoms]) - origin
        expected = opened.models[half - 1].consensus_positions.numpy() + BOX // 2 * PIXEL
        np.testing.assert_allclose(found, expected, atol=2e-3)
        voxels = np.round(found / PIXEL).astype(int)
        inside = ((voxels >= 0) & (voxels < BOX)).all(1)
        at_atoms = motion[tuple(voxels[inside].T[::-1])]
        b_factors = np.array([atom.b_iso for atom in atoms])[inside]
        assert (at_atoms > 0).all()
        assert np.abs(at_atoms - b_factors).mean() < 0.2 * b_factors.mean()
    table = pd.read_csv(run / "analysis" / "embedding.csv")
    np.testing.assert_allclose(table.to_numpy(), opened.motions.coordinates[:, :2].numpy(), rtol=1e-4, atol=1e-6)


def test_the_demonstration_runs_every_stage_and_says_what_was_true(tmp_path):
    words = ["demo", tmp_path, "--particles", N, "--box", BOX, "--pixel-size", PIXEL, "--n-gaussians", 200]
    code, text = dynamight(*words, "--epochs", "4", "--threads", "1")
    assert code == 0, text
    for part in ("Hinge angle: correlation with", "Verdict: ", "Resolution (half-maps", "With the true map"):
        assert part in text
    for path in re.findall(rf"^  ({re.escape(str(tmp_path))}\S+)", text, re.MULTILINE):
        assert Path(path).exists()
    assert dynamight(*words)[0] == 2
