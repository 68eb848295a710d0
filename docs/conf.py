"""How Sphinx builds this folder: `make docs`, without a network and without data."""

from __future__ import annotations

import sys
from pathlib import Path

import cl_callbacks

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))
from gallery_sources import write_sources  # noqa: E402

project = "cl_callbacks"
author = "the authors of cl_callbacks"
copyright = author
version = release = cl_callbacks.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_gallery.gen_gallery",
    "offline_math",
    "reference",
]
exclude_patterns = ["_build"]
nitpicky = True
# Names of other packages, whose pages would have to be fetched from the network.
nitpick_ignore_regex = [
    ("py:exc", "MisconfigurationException"),
    (
        "py:.*",
        r"(torch|torchmetrics|lightning|datasets|numpy|os|collections|typing)\..*",
    ),
    # Types in signatures that a reader of these pages has no use for.
    (
        "py:class",
        r"cl_callbacks\..*\.(WeightNoise|SynapticStep|Synapses|RuleScale|Units|UnitWeights|Drawn|Origin)",
    ),
]

# -- pages ---------------------------------------------------------------------------------------------

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4  # the anchors that the same files have on a repository's site
suppress_warnings = ["myst.strikethrough"]

html_theme = "furo"
pygments_dark_style = "monokai"
html_title = f"{project} {version}"
html_static_path = ["_static"]
html_css_files = ["wide.css"]
html_math_renderer = "offline"
html_copy_source = False
html_show_sphinx = False

# -- reference -----------------------------------------------------------------------------------------

autosummary_generate = False  # its tables link to the pages here
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
autodoc_inherit_docstrings = False  # hooks of Lightning say nothing new here
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

# -- gallery -------------------------------------------------------------------------------------------

sphinx_gallery_conf = {
    "examples_dirs": [write_sources(HERE.parent / "examples", HERE / "_build" / "gallery_sources")],
    "gallery_dirs": ["gallery"],
    "filename_pattern": "existing_trainer",  # the one that is run: some seconds
    "within_subsection_order": "gallery_sources.InOrder",
    "default_thumb_file": str(HERE / "task_matrix.png"),
    "write_computation_times": False,
    "download_all_examples": False,
    "show_signature": False,
    "remove_config_comments": True,
}
