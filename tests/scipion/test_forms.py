"""The forms: the engine's options and defaults, and what is refused or warned of before a run."""

from dynamight_scipion.protocols import DynamightProtDeformations, DynamightProtReconstruct
from tests.support.plugin import same_input, small


def test_volumes_that_differ_are_warned_of_before_a_run(workflow, chain, monkeypatch):
    run = workflow.new(
        DynamightProtDeformations,
        same_input(chain) | {"inputMask": (chain["reconstruction"], "outputMask")},
        **small(chain, particleDiameter=500.0),
    )
    assert run.validate() == ["The particle diameter (500 Å) is larger than the box (192 Å)."]
    run.particleDiameter.set(150.0)
    assert (run.validate(), run.warnings()) == ([], [])
    volume, mask = run.inputVolume.get(), run.inputMask.get()
    monkeypatch.setattr(volume, "getSamplingRate", lambda: 4.0)
    monkeypatch.setattr(volume, "getHalfMaps", lambda asList: [])
    monkeypatch.setattr(mask, "getDim", lambda: (40, 40, 40))
    assert run.validate() == []
    map_resampled, mask_resampled, one_start = run.warnings()
    assert "The consensus map has 4 Å per voxel (particles: 6 Å)" in map_resampled
    assert "40 x 40 x 40 voxels (particles: 32 pixels)" in mask_resampled
    assert "has no half-maps" in one_start
    monkeypatch.setattr(mask, "getFileName", lambda: "gone.mrc")
    assert run.validate() == [
        "The file of the mask of the flexible region is missing (gone.mrc): restore it, or import it again."
    ]


def test_nothing_is_started_with_bad_input(workflow, chain):
    bare = workflow.new(DynamightProtDeformations)
    assert sum("cannot be EMPTY" in error for error in bare.validate()) == 2
    assert bare.warnings() == []
    reconstruction = workflow.new(DynamightProtReconstruct)
    assert any("cannot be EMPTY" in error for error in reconstruction.validate())
    assert reconstruction.warnings() == []
