"""Runs and options that `dynamight explore` refuses, each in a sentence."""

import pytest
import safetensors.torch
import starfile

from dynamight_core.analysis.explorer.server import ExplorerServer
from dynamight_core.errors import InputError


def edit_latents(run):
    tensors = safetensors.torch.load_file(run / "latents.safetensors")
    tensors["latents"] = tensors["latents"].clone() * 1.3
    safetensors.torch.save_file(tensors, run / "latents.safetensors")


def lose_particles(run):
    tensors = safetensors.torch.load_file(run / "latents.safetensors")
    kept = {name: t[:, :-5] if name in ("latents", "covariances") else t[:-5] for name, t in tensors.items()}
    safetensors.torch.save_file({name: t.contiguous() for name, t in kept.items()}, run / "latents.safetensors")


def edit_star(run):
    path = run / "particles.star"
    blocks = starfile.read(path)
    blocks["particles"]["dynMotion1"] += 5.0
    starfile.write(blocks, path, overwrite=True)


def other_table(run):
    (run / "scores.csv").write_text("rlnImageName,score\n000001@other.mrcs,2\n")
    return ["--table", run / "scores.csv"]


def short_table(run):
    (run / "scores.csv").write_text("score\n1\n2\n")
    return ["--table", run / "scores.csv"]


BAD = {
    "unfinished": (lambda run: (run / "latents.safetensors").unlink(), "has not finished"),
    "not summarised": (lambda run: (run / "analysis" / "summary.json").unlink(), "summary.json is missing"),
    "half missing": (lambda run: (run / "half2" / "model.safetensors").unlink(), "half2/model.safetensors is missing"),
    "latents edited": (edit_latents, "do not belong together"),
    "particles lost": (lose_particles, "holds 395 particles"),
    "star edited": (lambda run: [edit_star(run), *other_table(run)][1:], "dynMotion1 of .* was edited"),
    "table of others": (other_table, "'000001@other.mrcs' in column rlnImageName, line 2"),
    "table too short": (short_table, "has 2 lines but the run has 400"),
    "table missing": (lambda run: ["--table", run / "none.csv"], "none.csv does not exist"),
    "port": (lambda run: ["--port", "99999"], "--port is 99999; give a value from 0 to 65535"),
    "host": (lambda run: ["--host", "192.0.2.1"], "not an address of this machine"),
    "model": (lambda run: ["--model", run / "none.pdb"], "none.pdb does not exist"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_run_that_cannot_be_explored_is_refused_in_a_sentence(folder, case, monkeypatch, dynamight):
    monkeypatch.setattr(ExplorerServer, "serve_forever", lambda server: pytest.fail("it was served"))
    break_it, message = BAD[case]
    words = break_it(folder) or []
    code, text = dynamight("explore", folder, "--no-browser", *words)
    assert code == 2, text
    assert text.startswith("Error: ")
    with pytest.raises(InputError, match=message):
        raise InputError(text.replace("\n", " "))
