"""Runs that start from an atomic model: whether it is fitted, what training keeps of it, and what is said of it."""

import json

import gemmi
import numpy as np
import pytest
import torch

import dynamight_core.training.stage as run_module
from dynamight_core.analysis.controls.stage import control_run
from dynamight_core.analysis.report import write_report
from dynamight_core.errors import InputError
from dynamight_core.files import read_map
from dynamight_core.judging.bias import has_atomic_model, model_bias, wrong_model_result
from dynamight_core.judging.summary import summarise
from dynamight_core.model.alignment import align
from dynamight_core.model.atomic import coarse_grain
from dynamight_core.model.initialise import find_molecule
from dynamight_core.options import ControlOptions, InputOptions, ReconstructOptions, SimulateOptions, TrainOptions
from dynamight_core.reconstruction.stage import reconstruct_run
from dynamight_core.reporter import QUIET, Reporter
from dynamight_core.run import Run
from dynamight_core.simulate.dataset import simulate
from dynamight_core.training.check import check_inputs
from dynamight_core.training.read import read_inputs
from dynamight_core.training.schedule import schedule
from dynamight_core.training.stage import train
from tools.structures import write_antibody

FAB, AXIS = "L/1-107 H/1-113", ("L/107/CA", "H/113/CA")
QUICK = {"n_latents": 2, "epochs": 6, "warm_up_epochs": 1, "n_motions": 2, "validation_fraction": 0.25}


def write_moved(path, source, rotation=None, shift=(0, 0, 0), mirror=False, shell=None):
    """Write a structure with its atoms moved, mirrored, or laid on a sphere of a radius."""
    structure = gemmi.read_structure(str(source))
    for chain in structure[0]:
        for residue in chain:
            for atom in residue:
                place = np.array(atom.pos.tolist())
                place = place * [1, 1, -1] if mirror else place
                place = place if rotation is None else rotation @ place
                place = place if shell is None else place * shell / np.linalg.norm(place)
                atom.pos = gemmi.Position(*(place + shift))
    structure.make_mmcif_document().write_file(str(path))
    return path


@pytest.fixture(scope="module")
def fab(tmp_path_factory):
    """The Fab of an antibody, its elbow bending: particles, and its model where it is in the map."""
    folder = tmp_path_factory.mktemp("fab")
    model = write_antibody("H/1-213 L", folder / "fab.cif")
    options = SimulateOptions(
        molecule=str(model), selection=FAB, axis=AXIS, particles=200, box=28, pixel_size=4.0, snr=8.0, motion_range=25.0
    )
    return simulate(options, folder / "set"), model


def inputs(files, model, **more):
    return InputOptions(star=str(files.particles), map=str(files.consensus), atomic_model=str(model), **more)


@pytest.fixture(scope="module")
def trained(fab, tmp_path_factory):
    """A quick run of it, and what was said."""
    files, model = fab
    folder, said = tmp_path_factory.mktemp("atomic") / "run", []
    reporter = Reporter(said.append)
    summarise(train(inputs(files, model), TrainOptions(**QUICK), folder, reporter=reporter), reporter=reporter)
    return folder, said


def aligned(files, model):
    volume, pixel_size = read_map(files.consensus)
    volume = torch.from_numpy(volume)
    coarse = coarse_grain(model)
    return align(coarse.positions, coarse.amplitudes, volume, find_molecule(volume, pixel_size).mask, pixel_size, 0)


def test_a_fitted_model_is_told_from_a_misplaced_one(fab, tmp_path):
    """The local fit finds the way back, and the mirror image fits worse."""
    files, model = fab
    there = aligned(files, model)
    assert there.correlation > 0.9 and there.moved < 3.0 and there.mirrored < there.correlation - 0.05
    assert there.centre_offset < 2.0
    axis = np.array([0.6, 0.0, 0.8])
    turn = np.cos(0.3) * np.eye(3) + np.sin(0.3) * np.cross(np.eye(3), axis) + (1 - np.cos(0.3)) * np.outer(axis, axis)
    away = aligned(files, write_moved(tmp_path / "away.cif", model, turn, (7.0, -5.0, 4.0)))
    assert away.correlation < there.correlation - 0.1
    places = coarse_grain(model).positions
    back = (places @ turn.T + [7.0, -5.0, 4.0]) @ away.rotation.T + away.shift
    assert np.sqrt(np.square(back - places).sum(1).mean()) < 3.0


def test_what_is_not_fitted_is_refused_with_how_far_it_is_off(fab, tmp_path):
    """Moved, of the other hand, or another molecule; --fit moves it and keeps the way in config.yaml."""
    files, model = fab
    shifted = write_moved(tmp_path / "shifted.cif", model, shift=(9.0, 6.0, 0.0))
    with pytest.raises(InputError, match=r"not fitted to .* moved by \d+\.\d A rms.*--fit"):
        check_inputs(inputs(files, shifted, origin="centre"), TrainOptions(), images=False, reporter=QUIET)
    options = TrainOptions()
    prepared = read_inputs(inputs(files, shifted, origin="centre", fit=True), options)
    assert prepared.options.n_gaussians == len(prepared.atomic.coarse)
    assert options == TrainOptions(), "the caller's options stay"
    assert any("--fit rotated the atomic model" in line for line in prepared.notes)
    prepared.atomic.write_fitted(tmp_path / "fitted.cif")
    fitted = coarse_grain(tmp_path / "fitted.cif").positions
    assert np.allclose(fitted, prepared.atomic.coarse.positions, atol=2e-3)
    assert np.sqrt(np.square(fitted - coarse_grain(model).positions).sum(1).mean()) < 3.0
    with pytest.raises(InputError, match="other hand"):
        mirrored = write_moved(tmp_path / "mirrored.cif", model, mirror=True)
        check_inputs(inputs(files, mirrored), TrainOptions(), images=False, reporter=QUIET)
    with pytest.raises(InputError, match="does not fit"):
        sphere = write_moved(tmp_path / "sphere.cif", model, shell=48.0)
        check_inputs(inputs(files, sphere, origin="centre"), TrainOptions(), images=False, reporter=QUIET)
    with pytest.raises(InputError, match="outside the box"):
        outside = write_moved(tmp_path / "outside.cif", model, shift=(90.0, 0, 0))
        check_inputs(inputs(files, outside, origin="centre"), TrainOptions(), images=False, reporter=QUIET)
    with pytest.raises(InputError, match="--width-classes"):
        check_inputs(inputs(files, model), TrainOptions(width_classes=2), images=False, reporter=QUIET)
    with pytest.raises(InputError, match="--atomic-model"):
        InputOptions(fit=True)


def test_coordinates_may_count_from_the_corner(fab, tmp_path):
    """As those of a model built in a map whose first voxel is at the origin."""
    files, model = fab
    corner = write_moved(tmp_path / "corner.cif", model, shift=(56.0, 56.0, 56.0))
    said = []
    check_inputs(inputs(files, corner), TrainOptions(), images=False, reporter=Reporter(said.append))
    assert any("first voxel" in line for line in said)
    assert any("correlates with the map to 0.9" in line for line in said)


def test_training_keeps_places_amplitudes_and_edges(fab, trained):
    """Scale and width are learned; the rest is the model's, in both halves, and is saved with them."""
    _, model = fab
    folder, _ = trained
    coarse, run = coarse_grain(model), Run(folder)
    assert has_atomic_model(run)
    for half in run.models:
        gaussians = half.gaussians
        assert np.allclose(gaussians.positions.detach(), coarse.positions, atol=1e-3)
        ratio = gaussians.relative_amplitudes.detach().numpy() / coarse.amplitudes
        assert np.allclose(ratio, ratio[0]) and np.array_equal(gaussians.edges, coarse.edges)
    widths = [float(half.gaussians.widths) for half in run.models]
    assert widths[0] != widths[1]
    record = run.config.provenance["atomic_model"]
    assert record["file"] == str(model) and len(record["sha256"]) == 64 and record["fit"] is None
    assert run.config.train.n_gaussians == len(coarse) == record["gaussians"]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all(line["repulsion"] == 0 for line in lines) and any(line["regularity"] > 0 for line in lines)


def test_the_reference_of_an_atomic_model_is_not_updated():
    epochs = schedule(TrainOptions(epochs=30), fixed=True)
    assert not any(epoch.refit or epoch.update_reference or epoch.kind == "reference" for epoch in epochs)
    assert any(epoch.refit for epoch in schedule(TrainOptions(epochs=30)))


def test_such_a_run_resumes(fab, tmp_path, monkeypatch):
    """With the coordinate network and the paper's epochs, stopped twice; a model that changed in between is refused."""
    files, model = fab
    own = write_moved(tmp_path / "own.cif", model)
    options = TrainOptions(**QUICK, decoder="coordinate", latent_refinement=False)
    original = run_module._run_epoch

    def stop_at(last):
        def epoch(kind, number, trainer):
            if number == last:
                assert trainer.model.gaussians.fixed
                raise KeyboardInterrupt
            return original(kind, number, trainer)

        return epoch

    monkeypatch.setattr(run_module, "_CHECKPOINT_SECONDS", 0.0)
    said = []
    for last in (2, 3):
        monkeypatch.setattr(run_module, "_run_epoch", stop_at(last))
        with pytest.raises(KeyboardInterrupt):
            train(inputs(files, own), options, tmp_path / "run", resume=True, reporter=Reporter(said.append))
    assert any("Resuming after epoch 1" in line for line in said)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["warm-up"] * 2 + ["encoder"] * 2
    write_moved(own, model, shift=(0.2, 0, 0))
    with pytest.raises(InputError, match=r"own\.cif is not the file that belongs to"):
        train(inputs(files, own), options, tmp_path / "run", resume=True, reporter=QUIET)


def test_going_on_from_such_a_run_takes_the_same_model(fab, trained, tmp_path):
    """Not another one, nor none."""
    files, _ = fab
    folder, _ = trained
    n_gaussians = Run(folder).config.train.n_gaussians
    plain = InputOptions(star=str(files.particles), map=str(files.consensus), start_from=str(folder))
    with pytest.raises(InputError, match=r"trained with the atomic model .*fab\.cif"):
        train(plain, TrainOptions(**QUICK, n_gaussians=n_gaussians), tmp_path / "on", reporter=QUIET)


def test_maps_of_such_a_run_carry_the_warning(trained):
    """On the terminal, in summary.json and the report; with the result of the control once it was run."""
    folder, said = trained
    assert any("one atomic model" in line and line.startswith("Warning") for line in said)
    spoken = []
    reconstruct_run(Run(folder), ReconstructOptions(rigid=False, local_resolution=False), Reporter(spoken.append))
    assert any("wrong-model, which tests this, was not run" in line for line in spoken)
    assert any("wrong-model" in line for line in json.loads((folder / "analysis/summary.json").read_text())["warnings"])
    result = wrong_model_result(Run(folder))
    result.parent.mkdir(parents=True)
    control = {"kind": "wrong-model", "verdict": "follows the data", "figures": {}}
    control["sentence"] = "The map follows the data."
    result.write_text(json.dumps(control))
    page = write_report(Run(folder), reporter=QUIET).read_text()
    assert "The map follows the data" in page and "was not run" not in page
    warnings = json.loads((folder / "analysis/summary.json").read_text())["warnings"]
    assert sum("one atomic model" in line for line in warnings) == 1
    result.write_text("{")
    with pytest.raises(InputError, match=r"wrong-model\.json cannot be read"):
        model_bias(Run(folder))
    result.unlink()


def test_the_control_with_a_wrong_model_is_part_of_the_warning_from_then_on(trained):
    folder, _ = trained
    control = control_run(Run(folder), ControlOptions("wrong-model", selection=FAB), reporter=QUIET)
    assert abs(control.figures["share_of_wrong_rigid"]) < 0.3
    assert control.figures["fsc_rigid_right"] > control.figures["fsc_rigid_wrong"]
    assert f"Control wrong-model: {control.sentence.rstrip('.')}" in model_bias(Run(folder))
    for name in ("deformed.mrc", "rigid.mrc", "wrong.cif", "run/particles.star"):
        assert (folder / "analysis" / "controls" / "wrong-model" / name).exists()
