"""Control wrong-model: whether the map follows the atomic model or the data.

One domain of the atomic model is replaced by another structure, and training and reconstruction are repeated. In that
domain, the map is compared with the right structure, which the images show, and with the wrong one. The rigid map of
the same particles, which no model touched, shows how much of the wrong structure appears by chance.
"""

import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import gemmi
import numpy as np
import pandas as pd
import torch
from scipy.spatial import cKDTree

from dynamight_core.analysis.controls.maps import ControlImages, maps_of, reason_for_no_motion
from dynamight_core.analysis.controls.result import Control
from dynamight_core.analysis.domain_files import domain_masks
from dynamight_core.analysis.domains import find_domains
from dynamight_core.errors import InputError
from dynamight_core.imaging.correlation import fourier_shell_correlation
from dynamight_core.imaging.fourier import shells, volume_to_fourier
from dynamight_core.judging.bias import has_atomic_model
from dynamight_core.judging.evidence import controls_folder
from dynamight_core.judging.summary import summarise
from dynamight_core.model.gaussians import GaussianModel
from dynamight_core.model.wrong import Placement, wrong_model
from dynamight_core.options import ControlOptions
from dynamight_core.particles.metadata import write_particles
from dynamight_core.reporter import QUIET, Reporter
from dynamight_core.run import Run
from dynamight_core.structures import read_structure, selected_atoms, zero_of_coordinates
from dynamight_core.training.stage import train

_SIGMAS = 3.0
# Shells are used where right and wrong structure have an FSC below this.
_MAX_SIMILARITY = 0.5
# Points around a residue, and residues on either side, that determine its domain. A stretch has at least `_MIN_STRETCH`
# residues; stretches that are at most `_MAX_GAP` residues apart are joined.
_NEIGHBOURS, _WINDOW, _MIN_STRETCH, _MAX_GAP = 25, 7, 15, 40


@dataclass(frozen=True)
class Structures:
    """(box, box, box) densities of the two structures, and a mask.

    Parameters
    ----------
    right, wrong
        the domain, and the structure that replaces it.
    rest
        of the model.
    mask
        around right and wrong, nearer to them than to the rest.
    """

    right: torch.Tensor
    wrong: torch.Tensor
    rest: torch.Tensor
    mask: torch.Tensor


def wrong_model_control(
    run: Run, options: ControlOptions, rows: torch.Tensor, device, reporter: Reporter
) -> tuple[Control, dict[str, torch.Tensor]]:
    """Train with a wrong model, reconstruct, and compare the map with both structures.

    If no motion is supported, the map is the rigid one, and nothing is compared.

    Parameters
    ----------
    run
        trained with an atomic model.
    options
        of the control.
    rows
        of the particles to use.
    device
        of the computation.
    reporter
        takes lines for the user, and progress.

    Returns
    -------
    tuple
        the control, and the maps "deformed" and "rigid".

    Raises
    ------
    InputError
        if the run has no atomic model, or no moving domain to replace.
    """
    if not has_atomic_model(run):
        raise InputError(
            f"{run.path} was trained without an atomic model; the control wrong-model needs a run of dynamight train "
            "--atomic-model"
        )
    folder = controls_folder(run) / options.kind
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    right = _centred_model(run, folder / "right.cif")
    selection = options.selection or moving_domain(run, right)
    reporter.say(f"Replaced part of the atomic model: {selection} (--selection).")
    wrong = folder / "wrong.cif"
    placement = wrong_model(right, selection, wrong, options.replacement)
    reporter.say(placement.sentence)
    inputs = replace(
        run.config.inputs,
        **_particles(run, rows, folder),
        project=run.config.inputs.project or str(Path(run.config.inputs.star).parent),
        atomic_model=str(wrong),
        fit=False,
        origin="centre",
        start_from=None,
    )
    silent = Reporter(lambda line: None, reporter.progress)
    trained = train(inputs, replace(run.config.train), folder / "run", overwrite=True, reporter=silent)
    other = summarise(trained, reporter=QUIET)
    images = ControlImages(other, torch.arange(len(other.halves)), device)
    volumes: dict[str, list[torch.Tensor]] = {"deformed": [], "rigid": []}
    halves = images.deformations(options)
    if halves is None:
        text = (
            f"{reason_for_no_motion(other, options)} if {selection} is replaced by another structure. The map is the "
            "rigid one, which no model touched. Model bias in the presence of motion was not tested."
        )
        return Control("wrong-model", "no motion", text), {}
    for half, deformations in enumerate(halves, 1):
        chosen = images.chosen(half, len(images), options.seed)
        summed = deformations.reconstruct(images.data(half), chosen, reporter.step(f"map of half-set {half}"))
        for name, volume in zip(volumes, maps_of(summed), strict=True):
            volumes[name].append(volume)
    means = {name: (pair[0] + pair[1]) / 2 for name, pair in volumes.items()}
    structures = densities(right, wrong, selection, images)
    return _verdict(means, structures, selection, images, placement), means


def _centred_model(run: Run, out: Path) -> Path:
    """Write the run's atomic model (as fitted, with --fit) with its origin at the centre of the box."""
    record = run.config.provenance["atomic_model"]
    inputs = run.config.inputs
    structure = read_structure(str(inputs.atomic_model))
    atoms = [found.atom for model in structure for found in model.all()]
    positions = np.array([atom.pos.tolist() for atom in atoms])
    grid = run.particles.box, run.particles.pixel_size
    _, offset = zero_of_coordinates(positions, record["origin"], inputs.map, *grid)
    if record["fit"] is not None:
        positions = positions @ np.array(record["fit"]["rotation"]).T + np.array(record["fit"]["shift"])
    for atom, position in zip(atoms, positions - offset, strict=True):
        atom.pos = gemmi.Position(*position)
    structure.make_mmcif_document().write_file(str(out))
    return out


def moving_domain(run: Run, path: Path) -> str:
    """Return a selection of the residues in the domain that moves most relative to the largest.

    Parameters
    ----------
    run
        with principal motions.
    path
        of an atomic model with its origin at the centre of the box.

    Raises
    ------
    InputError
        if there is only one domain, or the domain contains no stretch of residues.
    """
    domains = find_domains(run.motions)
    if len(domains) < 2:
        raise InputError(
            f"{run.path} has only one rigid-body domain; name the part to replace with --selection, such as H/1-213 L"
        )
    motion = np.asarray(run.summary["point_motion"])
    spread = [motion[domains.labels == domain].mean() for domain in range(1, len(domains))]
    domain = 1 + int(np.argmax(spread))
    tree = cKDTree((run.motions.points + run.motions.mean).numpy())
    parts = []
    for chain in read_structure(path)[0]:
        residues = list(chain.get_polymer()) or list(chain)
        centres = np.array([np.mean([atom.pos.tolist() for atom in residue], 0) for residue in residues])
        near = tree.query(centres, k=min(_NEIGHBOURS, len(domains.labels)))[1]
        # The border between domains is ragged, so neighbours in the chain count too.
        window = np.ones(2 * _WINDOW + 1)
        fraction = np.convolve((domains.labels[near] == domain).mean(1), window, "same")
        inside = fraction > 0.5 * np.convolve(np.ones(len(residues)), window, "same")
        edges = np.flatnonzero(np.diff(np.r_[0, inside.astype(int), 0])).reshape(-1, 2)
        stretches: list[list[int]] = []
        for first, after in edges.tolist():
            if stretches and first - stretches[-1][1] <= _MAX_GAP:
                stretches[-1][1] = after
            else:
                stretches.append([first, after])
        parts += [
            f"{chain.name}/{_number(residues[first])}-{_number(residues[after - 1])}"
            for first, after in stretches
            if after - first >= _MIN_STRETCH
        ]
    if not parts:
        raise InputError(f"the moving domain of {run.path} contains no stretch of residues; name one with --selection")
    return " ".join(parts)


def _number(residue: gemmi.Residue) -> str:
    """Return a residue's number in the syntax of gemmi's selections."""
    code = residue.seqid.icode.strip()
    return f"{residue.seqid.num}.{code}" if code else str(residue.seqid.num)


def _particles(run: Run, rows: torch.Tensor, folder: Path) -> dict[str, Any]:
    """Return the input options that name the run's particles, or write the chosen ones if these are not all."""
    if len(rows) == len(run.halves):
        return {}
    path = folder / "particles.star"
    write_particles(path, run.particles.subset(rows.numpy()), {})
    return {"star": str(path), "passthrough": []}


def densities(right: Path, wrong: Path, selection: str, images: ControlImages) -> Structures:
    """Return the densities of both structures and of the rest, at the width of the run's Gaussians."""
    chosen = selected_atoms(read_structure(right), selection, right)
    models = [_atoms(path) for path in (right, wrong)]
    inside = np.array([name in chosen for name in models[0][0]])
    before = {name for name, part in zip(models[0][0], inside, strict=True) if not part}
    new = np.array([name not in before for name in models[1][0]])
    width = float(images.run.models[0].gaussians.widths.detach().mean())

    def density(atoms, which):
        gaussians = GaussianModel(torch.from_numpy(atoms[1][which]).float(), width, 1.0)
        with torch.no_grad():
            gaussians.relative_amplitudes.copy_(torch.from_numpy(atoms[2][which]).float())
            return gaussians.render(images.box, images.pixel_size)

    points = np.concatenate([models[0][1][~inside], models[0][1][inside], models[1][1][new]])
    labels = np.r_[np.zeros((~inside).sum(), int), np.ones(inside.sum() + new.sum(), int)]
    mask = torch.from_numpy(domain_masks(points, labels, 2, images.box, images.pixel_size)[1])
    parts = density(models[0], inside), density(models[1], new), density(models[0], ~inside)
    return Structures(*(part.to(images.device) for part in (*parts, mask)))


def _atoms(path: Path) -> tuple[list[tuple[str, str, str]], np.ndarray, np.ndarray]:
    """Return names (chain, residue, atom), (m, 3) positions (A) and (m,) atomic numbers of a model's atoms."""
    structure = read_structure(path)
    found = list(structure[0].all())
    names = [(each.chain.name, str(each.residue.seqid), each.atom.name) for each in found]
    positions = np.array([each.atom.pos.tolist() for each in found])
    return names, positions, np.array([each.atom.element.atomic_number for each in found], float)


def wrong_fractions(volumes: list[torch.Tensor], structures: Structures) -> tuple[np.ndarray, np.ndarray]:
    """Return the fraction of the wrong structure, 0 to 1, in several maps in the mask.

    The transform of a map is fitted by b right + c wrong + d rest, in the shells where right and wrong differ. The
    fraction is c / (b + c).

    Returns
    -------
    tuple
        (maps,) fractions, and (shells, maps) fractions with one shell omitted.
    """
    box, mask = len(structures.mask), structures.mask
    similarity = fourier_shell_correlation(structures.right, structures.wrong, mask)
    used = [k for k in range(1, box // 2) if similarity[k] < _MAX_SIMILARITY]
    radius = shells(box, 3, mask.device)
    terms = [volume_to_fourier(part * mask) for part in (structures.right, structures.wrong, structures.rest)]
    targets = [volume_to_fourier(volume * mask) for volume in volumes]
    shell_products, shell_scores = [], []
    for k in used:
        ring = radius == k
        design = torch.stack([torch.view_as_real(term[ring]).flatten() for term in terms], 1).double()
        values = torch.stack([torch.view_as_real(target[ring]).flatten() for target in targets], 1).double()
        # Equal weight for all shells: the strong low ones contain least about the structure.
        weight = 1 / values.square().mean(0)
        shell_products.append(design.T @ design * weight[:, None, None])
        shell_scores.append((design.T @ values * weight).T)
    # (shells, maps, 3, 3) and (shells, maps, 3)
    products, scores = torch.stack(shell_products), torch.stack(shell_scores)

    def fraction(product: torch.Tensor, score: torch.Tensor) -> np.ndarray:
        b, c, _ = torch.linalg.solve(product, score[..., None])[..., 0].unbind(-1)
        return (c / (b + c)).cpu().numpy()

    sums = products.sum(0), scores.sum(0)
    return fraction(*sums), np.stack([fraction(sums[0] - products[k], sums[1] - scores[k]) for k in range(len(used))])


def _verdict(means, structures, selection, images, placement: Placement) -> Control:
    (fraction, rigid), without = wrong_fractions(list(means.values()), structures)
    error = _jackknife(without[:, 0])
    drawn, drawn_error = fraction - rigid, _jackknife(without[:, 0] - without[:, 1])
    curves = {
        f"{name}_{kind}": fourier_shell_correlation(volume, getattr(structures, kind), structures.mask).cpu()
        for name, volume in means.items()
        for kind in ("right", "wrong")
    }
    fsc = {name: float(curve[1:].mean()) for name, curve in curves.items()}
    numbers = (
        f"With another structure in place of {selection}, the map there is {100 * fraction:.0f} +- {100 * error:.0f} % "
        f"wrong structure; the rigid map is {100 * rigid:.0f} %. Mean FSC with the right and the wrong structure: "
        f"{fsc['deformed_right']:.2f} and {fsc['deformed_wrong']:.2f} (rigid map: {fsc['rigid_right']:.2f} and "
        f"{fsc['rigid_wrong']:.2f})."
    )
    if fraction - _SIGMAS * error > 0.5:
        verdict = "follows the model"
        text = (
            f"The map follows the model, right or wrong. {numbers} Do not interpret structure in the map of this run."
        )
    elif drawn > _SIGMAS * drawn_error:
        verdict = "drawn to the model"
        text = f"The map is drawn to the model. {numbers} Interpret only what the rigid map shows too."
    elif fraction + _SIGMAS * error < 0.5:
        verdict, text = "follows the data", f"The map follows the data. {numbers}"
    else:
        verdict, text = "undecided", f"The map does not distinguish the two structures. {numbers}"
    figures = {
        "share_of_wrong": fraction,
        "share_of_wrong_error": error,
        "share_of_wrong_rigid": rigid,
        "drawn": drawn,
        "drawn_error": drawn_error,
        **{f"fsc_{name}": value for name, value in fsc.items()},
        **{f"placement_{name}": value for name, value in asdict(placement).items()},
        "particles": len(images),
        "resolution": images.frequencies,
        "curves": {name: curve.tolist() for name, curve in curves.items()},
    }
    table = pd.DataFrame({"frequency_per_A": images.frequencies} | {f"fsc_{n}": c for n, c in curves.items()})
    return Control("wrong-model", verdict, text, figures, table)


def _jackknife(without: np.ndarray) -> float:
    """Return the jackknife standard error of a number from its values with one part omitted."""
    n = len(without)
    return float(np.sqrt((n - 1) / n * ((without - without.mean()) ** 2).sum()))
