"""Files of cryoSPARC, symmetric molecules and new particles from the command line."""

import starfile

from tests.support.command_line import N, dynamight
from tests.support.cryosparc_files import from_relion, save


def test_a_cs_file_is_checked_with_its_map(data):
    cs = save(data.particles.with_name("J5_particles.cs"), from_relion(data.particles))
    code, text = dynamight("check", cs, "--map", data.consensus)
    assert code == 0, text
    assert f"{N} particles in 1 stack, cryoSPARC (1 exposure group)" in text
    assert "(alignments3D/split)" in text
    assert "Device: CPU" in text
    assert "ready for training" in text


def test_a_map_without_the_symmetry_stops_the_check(data):
    code, text = dynamight("check", data.particles, "--map", data.consensus, "--symmetry", "C3")
    assert code == 2
    assert "does not have the symmetry C3" in text


def test_new_particles_become_a_run(data, trained, tmp_path):
    words = ["infer", trained, data.particles, tmp_path / "new"]
    code, text = dynamight(*words)
    assert code == 0, text
    assert f"{N} particles: {N} belong to the run and keep their half-sets, 0 are new" in text
    table = starfile.read(tmp_path / "new" / "particles.star")["particles"]
    assert (table["dynHalf"] == starfile.read(data.particles)["particles"]["rlnRandomSubset"]).all()
    assert dynamight("select", tmp_path / "new", "--half", 1, "--out", tmp_path / "half1.star")[0] == 0
    code, text = dynamight(*words)
    assert code == 2
    assert "already contains a run" in text
    assert dynamight(*words, "--overwrite")[0] == 0
