"""Distribution scipion-em-dynamight: the Scipion plugin alone.

The engine is a separate distribution, in dynamight_core/.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent
README = HERE / "README.md"

# Read, not imported: a build environment has no Scipion in it.
VERSION = re.search(
    r'^__version__ = "(.+)"$', (HERE / "dynamight_scipion" / "__init__.py").read_text(encoding="utf-8"), re.M
).group(1)

setup(
    name="scipion-em-dynamight",
    version=VERSION,
    description="Scipion plugin that estimates molecular motions from cryo-EM particles and reconstructs sharper maps",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    license="GPL-3.0-or-later",
    license_files=["LICENSE"],
    keywords="scipion cryo-em structural-biology image-processing flexibility scipion-3.0",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3.8",
        "Programming Language :: Python :: 3.9",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Bio-Informatics",
    ],
    python_requires=">=3.8",
    packages=find_packages(include=["dynamight_scipion", "dynamight_scipion.*"]),
    package_data={"dynamight_scipion": ["*.png", "options.json", "protocols.conf", "templates/*"]},
    include_package_data=False,
    install_requires=["scipion-em", "scipion-pyworkflow", "emtable", "matplotlib", "mrcfile", "numpy", "scipy"],
    entry_points={"pyworkflow.plugin": "dynamight_scipion = dynamight_scipion"},
)
