"""Sphinx's configuration of the site; `make site` builds it. Nothing in the result is loaded from another host."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

project = "Fine-tuning notebooks"
root_doc = "index"
extensions = ["myst_nb", "sphinx-mathjax-offline"]
exclude_patterns = ["**/.ipynb_checkpoints", "downloads", "helpers"]
NOT_SEARCHED = re.compile(r"notebooks/solutions/|docs/instructor/answers")  # a learner's search finds no solutions
suppress_warnings = ["mystnb.unknown_mime_type", "toc.not_included", "myst.header"]

# the notebooks come executed, out of runs/<profile>
nb_execution_mode = "off"
nb_merge_streams = True
nb_output_stderr = "remove"
nb_ipywidgets_js = {}
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence"]
myst_dmath_double_inline = True
myst_heading_anchors = 4

html_theme = "sphinx_book_theme"
html_title = project
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = ["wide.js"]
html_copy_source = False
html_show_copyright = False
html_last_updated_fmt = ""
html_context = {"default_mode": "auto"}  # light or dark as the reader's system says, until the reader chooses
html_theme_options = {
    "footer_content_items": ["last-updated"],
    "use_download_button": False,
    "use_fullscreen_button": False,
    "navbar_persistent": [],
    "article_header_end": ["search-button", "theme-switcher", "toggle-secondary-sidebar"],
    "show_navbar_depth": 1,
    "logo": {"text": project},
}


class Text(HTMLParser):
    """The text of a page's main part, without scripts and styles. Colours in code do not part its words."""

    def __init__(self, page: str):
        super().__init__()
        self.text, self.hidden = "", 0
        self.feed(page[max(0, page.find("<article")) : page.rfind("</article>")])
        self.words = self.text.split()

    def handle_starttag(self, tag, attributes):
        self.hidden += tag in ("script", "style")
        self.text += "" if tag in ("span", "a", "code", "em", "strong") else " "

    def handle_endtag(self, tag):
        self.hidden -= tag in ("script", "style")

    def handle_data(self, data):
        self.text += "" if self.hidden else data


def hide_solutions(app, doctree):
    """Keep these pages out of the search's index; they stay in the site."""
    if NOT_SEARCHED.match(app.env.docname):
        app.env.metadata[app.env.docname]["nosearch"] = True


def write_excerpts(app, error):
    """The text of each page in one script: a browser that opened the site as files may not fetch the pages themselves."""
    if error is None and app.builder.name == "html":
        folder = Path(app.outdir)
        pages = {
            name: " ".join(Text((folder / f"{name}.html").read_text("utf-8")).words)
            for name in sorted(app.env.all_docs)
        }
        script = f"window.pageTexts = {json.dumps(pages, ensure_ascii=False)};\n"
        (folder / "_static" / "excerpts.js").write_text(script, encoding="utf-8")


def add_excerpts(app, pagename, templatename, context, doctree):
    """Only the search page loads them."""
    if pagename == "search":
        app.add_js_file("excerpts.js")
        app.add_js_file("search_from_files.js")


def setup(app):
    """Called by Sphinx."""
    (Path(app.outdir) / "_static").mkdir(parents=True, exist_ok=True)
    (Path(app.outdir) / "_static" / "excerpts.js").touch()  # the file has to exist when pages name it
    app.connect("doctree-read", hide_solutions)
    app.connect("html-page-context", add_excerpts)
    app.connect("build-finished", write_excerpts)
