"""Configuration of the site: `make docs` builds it into docs/_build."""

import os
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ['PYTHONPATH'] = str(ROOT)  # of the kernels that run the pages

import gm_jax  # noqa: E402

project = 'gm_jax'
author = 'the gm_jax authors'
copyright = author  # noqa: A001
release = gm_jax.__version__

extensions = [
    'myst_nb',
    'sphinx.ext.autodoc',
    'sphinx.ext.mathjax',
    'sphinx.ext.napoleon',
    'sphinx.ext.viewcode',
]
exclude_patterns = ['_build']
nitpicky = False
# A link to a heading that is not there is a warning, and warnings are errors.
myst_heading_anchors = 3
myst_enable_extensions = ['amsmath', 'colon_fence', 'dollarmath']

# Pages of the lecture run in seconds, by the small models of results/models/digits. The
# notebooks take minutes: a test runs them.
nb_execution_mode = 'force'
nb_execution_excludepatterns = ['notebooks/*']
nb_execution_timeout = 120
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_merge_streams = True

autodoc_member_order = 'bysource'
autodoc_typehints = 'none'
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # fields of a NamedTuple are described once

html_theme = 'sphinx_book_theme'
html_title = 'gm_jax'
html_theme_options = {'show_toc_level': 2}
