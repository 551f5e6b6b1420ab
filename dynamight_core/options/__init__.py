"""Every option of every stage, written once: a dataclass a stage, whose fields say what help, forms and docs say.

The command line, the tables of docs and the schema that the Scipion plugin reads are made from these; see
`dynamight_core.options.declare.Option` for what an option declares. Nothing here imports NumPy or torch.
"""

from dynamight_core.options.analyse import (
    AnalyseOptions,
    ControlOptions,
    DeformOptions,
    DisplaceOptions,
    ExploreOptions,
    FieldsOptions,
    SelectOptions,
    StatesOptions,
)
from dynamight_core.options.infer import InferOptions
from dynamight_core.options.reconstruct import InvertOptions, ReconstructOptions
from dynamight_core.options.simulate import DemoOptions, SimulateOptions
from dynamight_core.options.train import InputOptions, TrainOptions

# Stages by the name of their command; the input of a run has a dataclass of its own.
STAGES = {
    "input": InputOptions,
    "train": TrainOptions,
    "simulate": SimulateOptions,
    "infer": InferOptions,
    "invert": InvertOptions,
    "reconstruct": ReconstructOptions,
    "analyse": AnalyseOptions,
    "states": StatesOptions,
    "displace": DisplaceOptions,
    "fields": FieldsOptions,
    "deform": DeformOptions,
    "select": SelectOptions,
    "control": ControlOptions,
    "explore": ExploreOptions,
    "demo": DemoOptions,
}
