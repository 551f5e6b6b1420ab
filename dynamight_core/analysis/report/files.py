"""The files of the run, and the commands that wrote them."""

from pathlib import Path

import pandas as pd

from dynamight_core.analysis.report.page import Page, Part

_FILES = {
    "config.yaml": "every option of every stage as used, versions, checksum of the input",
    "metrics.jsonl": "one line per epoch and half: losses, weights; seconds and memory of both",
    "training_curves.csv": "curves of the training's figures, by half and epoch",
    "particles.star": "the input rows with half, validation, latents, motions (Å), rms motion and error (Å)",
    "latents.safetensors": "latents and their covariances under both halves' decoders",
    "half1/model.safetensors": "Gaussians and networks of half 1",
    "half2/model.safetensors": "Gaussians and networks of half 2",
    "analysis/report.html": "this report",
    "analysis/motions.safetensors": "principal motions at the common points, and all particles' coordinates",
    "analysis/motion.mrc": "motion at every voxel around the molecule, Å rms",
    "analysis/motion_error.mrc": "error of a displacement at every voxel, Å rms",
    "analysis/motion_beyond_error.mrc": "motion that exceeds its error, Å rms",
    "analysis/clusters.csv": "cluster of every particle: Gaussian mixture, k-means",
    "analysis/cluster_centres.csv": "centres and sizes of the clusters",
    "analysis/cluster_criterion.csv": "by which their number was chosen",
    "analysis/motion1_arrows.bild": "arrows of the first motion, spheres of its error at their tips (ChimeraX)",
    "analysis/motion1_arrows.csv": "the same as numbers",
    "analysis/agreement.csv": "how the halves agree on validation particles",
    "analysis/distributions.csv": "how the molecule is spread along the motions, errors taken out",
    "analysis/distribution_widths.csv": "standard deviations of the same",
    "analysis/bodies.csv": "angles and shifts of the rigid bodies given, in every particle, with errors",
    "analysis/bodies_summary.csv": "a row for each of these bodies",
    "analysis/relion_bodies.star": "the bodies in the form of RELION's multi-body refinement",
    "analysis/relion_data.star": "the particles and their bodies' angles and offsets in that form",
    "analysis/embedding.csv": "a place in a plane for each particle",
    "analysis/gaussians_half1.cif": "Gaussians of half 1, their motion in the B-factor column",
    "analysis/gaussians_half2.cif": "Gaussians of half 2, their motion in the B-factor column",
    "analysis/explored.sh": "commands of what was saved in dynamight explore",
    "analysis/summary.json": "verdict, statistics and warnings",
    "reconstruction/half1_unfil.mrc": "half-map 1, motion corrected, unfiltered and unmasked",
    "reconstruction/half2_unfil.mrc": "half-map 2, motion corrected, unfiltered and unmasked",
    "reconstruction/map.mrc": "their mean, filtered",
    "reconstruction/mask.mrc": "mask of the FSC",
    "reconstruction/fsc.star": "FSC curves",
    "reconstruction/rigid/map.mrc": "the map of the same particles without deformation",
}
# Folders whose files are not listed one by one: states, selections and tables come in dozens.
_FOLDERS = {
    "analysis/tables": "the numbers behind these figures",
    "analysis/domains": "masks and motions of the rigid domains",
    "analysis/controls": "verdicts and numbers of the control experiments",
    "analysis/controls/wrong-model": "the wrong model, and maps of the run that was trained with it",
    "analysis/controls/held-out": "maps of the particles that trained nothing, on the grid of the particles",
}
_VERSIONS = ("dynamight_core", "python", "torch", "numpy", "starfile", "mrcfile")


def files(page: Page) -> Part:
    """Return what every file of the run holds and how large it is, and the commands that wrote them."""
    provenance = page.run.config.provenance
    rows = _list(page.folder)
    checkpoints = [path.stat().st_size for path in page.folder.glob("half*/checkpoints/**/*") if path.is_file()]
    values = {
        "folder": page.folder.resolve(),
        "files": rows,
        "checkpoints": len(checkpoints),
        "checkpoint_size": _size(sum(checkpoints)),
        "provenance": provenance,
        "versions": [f"{name.replace('_', '-')} {provenance[name]}" for name in _VERSIONS if name in provenance],
    }
    table = pd.DataFrame({"file": [f"{name}{more}" for name, more, *_ in rows], "size": [row[3] for row in rows]})
    return Part(values, tables={"files": table})


def _list(folder: Path) -> list[tuple[str, str, str, str]]:
    """Return of each file, or folder of many, its name, how many files it holds, what these hold, and their size."""
    rows = []
    together: dict[str, list[int]] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")):
        name, size = path.relative_to(folder).as_posix(), path.stat().st_size
        if name.startswith("analysis/") and name.count("/") > 1:
            together.setdefault(name.rpartition("/")[0], []).append(size)
        elif "checkpoints" not in name:
            rows.append((name, "", _FILES.get(name, ""), _size(size)))
    for name, sizes in together.items():
        rows.append((f"{name}/", f" {len(sizes)} files", _FOLDERS.get(name, ""), _size(sum(sizes))))
    return rows


def _size(n_bytes: float) -> str:
    for unit in ("B", "kB", "MB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} GB"
