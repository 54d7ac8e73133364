"""The documentation's site: these pages and the docstrings. ``make docs`` builds it."""

from __future__ import annotations

import re

from docutils import nodes
from docutils.utils.math import MathError, latex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.writers.html5 import HTML5Translator

from torch_l1snr_fast import __version__

project = "torch_l1snr_fast"
release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"torch_l1snr_fast {release}"
html_show_copyright = False
html_math_renderer = "mathml"

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

autodoc_typehints = "none"  # names and defaults; what an argument is, the docstring says
autodoc_member_order = "bysource"
napoleon_custom_sections = ["Shape"]


def mathml(node: nodes.math | nodes.math_block, *, block: bool) -> str:
    """The formula as MathML, which browsers show by themselves: the pages load no scripts for it.

    docutils reads ``\\tfrac12`` as twelve over nothing; other things that it cannot do it says.
    """
    source = re.sub(r"(\\[td]?frac)(\w)(\w)", r"\1{\2}{\3}", node.astext())
    if block and "&" in source and r"\begin" not in source:
        source = rf"\begin{{aligned}}{source}\end{{aligned}}"
    try:
        return str(latex2mathml.tex2mathml(source, as_block=block))
    except MathError as error:
        logging.getLogger(__name__).warning("%s: %s", error, source, location=node)
        return ""


def visit_math(self: HTML5Translator, node: nodes.math) -> None:
    self.body.append(mathml(node, block=False))
    raise nodes.SkipNode


def visit_math_block(self: HTML5Translator, node: nodes.math_block) -> None:
    self.body.append(
        f'<div class="math" style="overflow-y: hidden">{mathml(node, block=True)}</div>'
    )
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
