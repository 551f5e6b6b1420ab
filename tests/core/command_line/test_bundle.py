"""`dynamight bundle` collects records, and nothing that shows the molecule."""

import shutil
import zipfile

import pytest

from tests.support.command_line import N, dynamight


def test_a_bundle_has_the_records_of_a_run_and_no_images(trained, data, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    (run / "error.log").write_text("Traceback")
    code, text = dynamight("bundle", run, "--out", tmp_path / "b.zip")
    assert code == 0, text
    with zipfile.ZipFile(tmp_path / "b.zip") as bundle:
        names = set(bundle.namelist())
        assert {"config.yaml", "metrics.jsonl", "error.log", "analysis/summary.json", "environment.txt"} <= names
        assert not [name for name in names if name.endswith((".mrc", ".mrcs", ".safetensors", ".star", ".html"))]
        particles = bundle.read("particles.txt").decode()
        assert f"data_particles: {N} rows" in particles
        assert particles.count("@particles.mrcs") == 3
        assert "half1/model.safetensors" in bundle.read("files.txt").decode()
        assert "torch " in bundle.read("environment.txt").decode()


@pytest.mark.parametrize("damage", ["config.yaml", "analysis/summary.json"])
def test_a_damaged_run_has_a_bundle_too(trained, tmp_path, damage, monkeypatch):
    run = shutil.copytree(trained, tmp_path / "run")
    (run / damage).write_bytes(b"\xff{")
    monkeypatch.chdir(tmp_path)
    code, text = dynamight("bundle", "run")
    assert code == 0, text
    with zipfile.ZipFile(tmp_path / "run-bundle.zip") as bundle:
        assert bundle.read(damage) == b"\xff{"


def test_a_bundle_replaces_no_file_of_the_run(trained, tmp_path):
    before = (trained / "latents.safetensors").read_bytes()
    code, text = dynamight("bundle", trained, "--out", trained / "latents.safetensors")
    assert code == 2
    assert "which is an input" in text
    assert (trained / "latents.safetensors").read_bytes() == before
    code, text = dynamight("bundle", tmp_path)
    assert code == 2
    assert "contains no run" in text
