"""The forms take the engine's options from its schema: texts, defaults, limits, and the words of its command line."""

import json

import pytest
from pyworkflow.protocol.params import EnumParam

from dynamight_core.errors import InputError
from dynamight_core.options import STAGES
from dynamight_core.options.declare import declared
from dynamight_core.options.schema import make_schema
from dynamight_scipion import Plugin
from dynamight_scipion.constants import DYNAMIGHT_OPTIONS
from dynamight_scipion.protocols import (
    DynamightProtControl,
    DynamightProtDeformations,
    DynamightProtDisplaceModel,
    DynamightProtReconstruct,
    DynamightProtSelect,
    DynamightProtStates,
)
from dynamight_scipion.protocols.protocol_base import inWordsOfForms, readOptions, readPresets
from tests.support.extension import extended_engine

PROTOCOLS = {
    DynamightProtDeformations: ("input", "train", "analyse"),
    DynamightProtReconstruct: ("reconstruct", "invert"),
    DynamightProtStates: ("states",),
    DynamightProtDisplaceModel: ("displace",),
    DynamightProtSelect: ("select",),
    DynamightProtControl: ("control",),
}
# Parameters of their own stand for these; see the protocols.
IN_PARTS = {"percentiles", "motion", "error", "disagreement", "half"}


def engine_options(protocol):
    """Return parameters and what they stand for: (stage, option, words of its choices)."""
    form = protocol.getDefinition()
    return {name: p.engineOption for name, p in form.iterParams() if hasattr(p, "engineOption")}


def option_class(stage, **values):
    return STAGES[stage](**({"kind": "held-out"} if stage == "control" and "kind" not in values else {}), **values)


def test_the_schema_that_is_shipped_is_the_engine_s():
    assert readOptions() == {
        stage: found["properties"] for stage, found in json.loads(json.dumps(make_schema()))["$defs"].items()
    }


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: protocol.__name__)
def test_every_option_with_a_label_is_in_the_form(protocol):
    labelled = {
        (stage, field.name.replace("_", "-"))
        for stage in PROTOCOLS[protocol]
        for field, option in declared(STAGES[stage])
        if option.label
    }
    shown = {(stage, option) for stage, option, _ in engine_options(protocol()).values()}
    assert {found for found in labelled - shown if found[1] not in IN_PARTS} == set()


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: protocol.__name__)
def test_untouched_forms_ask_for_the_engine_s_defaults(protocol):
    new = protocol()
    for name, (stage, option, words) in engine_options(new).items():
        value = getattr(new, name).get()
        value = words[value] if words else value
        default = readOptions()[stage][option].get("default", "shuffled-latents")
        if name != "nClusters":
            assert value == default or (value, default) == ("", None), name


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: protocol.__name__)
def test_form_and_engine_refuse_the_same_numbers(protocol):
    new, refused = protocol(), 0
    for name, (stage, option, words) in engine_options(new).items():
        param = new.getDefinition().getParam(name)
        kinds = readOptions()[stage][option]["type"]
        if words or not ("integer" in kinds or "number" in kinds):
            continue
        for value in (-1, 0, 0.05, 0.5, 1, 2, 15, 16, 17, 49, 50, 99, 100, 2**32 - 1, 2**32):
            value = int(value) if "integer" in kinds else value
            try:
                option_class(stage, **{option.replace("-", "_"): value})
                allowed = True
            except InputError:
                allowed = False
            assert (param.validate(value) == []) == allowed, (name, value, param.validate(value))
            refused += not allowed
    assert refused or protocol is DynamightProtDisplaceModel


def test_parameters_become_the_words_of_the_command_line(workflow):
    protocol = workflow.new(DynamightProtDeformations)
    protocol.nEpochs.set(7)
    protocol.decoder.set(1)
    protocol.gaussianAmplitudes.set(False)
    protocol.refinePoses.set(True)
    protocol.premultiplied.set(2)
    protocol.structureOrigin.set(1)
    text = " ".join(protocol._getTrainOptions())
    for words in (
        "--epochs 7",
        "--decoder coordinate",
        "--no-gaussian-amplitudes",
        "--refine-poses",
        "--origin corner",
    ):
        assert words in text
    assert "--no-premultiplied" in text
    for name in ("particle-diameter", "no-latent-refinement", "fit", "embedding", "device", "threads"):
        assert f"--{name} " not in f"{text} "


def test_a_preset_is_one_choice_and_parameters_that_keep_their_defaults_follow_it(workflow):
    protocol = workflow.new(DynamightProtDeformations)
    assert "--preset" not in protocol._getTrainOptions()
    protocol.preset.set(1)
    assert protocol._getTrainOptions() == ["--preset", "paper"]
    protocol.nEpochs.set(100)
    assert " ".join(protocol._getTrainOptions()) == "--preset paper --epochs 100"
    assert readPresets()["paper"]["train"]["epochs"] == 220


def test_a_decoder_and_a_loss_term_of_another_package_are_in_the_form(workflow, tmp_path, monkeypatch):
    printed = extended_engine(tmp_path)("options")
    assert printed.returncode == 0, printed.stderr
    (tmp_path / "options.json").write_text(printed.stdout)
    monkeypatch.setitem(Plugin._vars, DYNAMIGHT_OPTIONS, str(tmp_path / "options.json"))
    readOptions.cache_clear()
    try:
        protocol = workflow.new(DynamightProtDeformations)
        decoder = protocol.getDefinition().getParam("decoder")
        assert isinstance(decoder, EnumParam)
        assert decoder.choices == ["deformation fields", "coordinate network (paper)", "breathing"]
        protocol.decoder.set(2)
        protocol.lossWeights.set("drift=0.5")
        text = " ".join(protocol._getTrainOptions())
    finally:
        readOptions.cache_clear()
    assert "--decoder breathing" in text
    assert "--loss-weights drift=0.5" in text


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("--validation-fraction 0.1 holds out 3 images", "'Validation fraction' 0.1 holds out 3 images"),
        ("set --premultiplied, or --no-premultiplied if", "set '{p}', or '{p}' (No) if"),
        # What the form does not have stays, and so do words with dashes.
        ("set --project; a half--map, --resume", "set --project; a half--map, --resume"),
    ],
)
def test_a_failure_names_the_labels_of_the_form(message, told):
    label = "Were images premultiplied by the CTF?"
    assert inWordsOfForms(message, "train") == told.format(p=label)
