"""Names shared by the plugin, Scipion's configuration and the engine."""

PROGRAM = "dynamight"
ENGINE = "dynamight-core"
# The release of the engine that this plugin needs and installs.
ENGINE_VERSION = "0.1.0"

# Variables of Scipion's configuration
DYNAMIGHT_HOME = "DYNAMIGHT_HOME"
DYNAMIGHT_ENV_ACTIVATION = "DYNAMIGHT_ENV_ACTIVATION"
DYNAMIGHT_OPTIONS = "DYNAMIGHT_OPTIONS"
