"""Sphinx's configuration of the site; `make site` builds it. Nothing in the result is loaded from another host."""

project = "Fine-tuning notebooks"
root_doc = "index"
extensions = ["myst_nb", "sphinx-mathjax-offline"]
exclude_patterns = ["**/.ipynb_checkpoints"]
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
