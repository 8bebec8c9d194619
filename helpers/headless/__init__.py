"""The series without a browser, and how its results look: ``python -m helpers.headless`` is what `make run-all` calls."""

from helpers.headless.display import align, describe, figure_to_html, switch_on
from helpers.headless.masking import mask_secrets, secret_name
from helpers.headless.pages import markdown_to_html
from helpers.headless.parameters import UsageError, find_notebooks, parameters_of
from helpers.headless.runner import run_all
