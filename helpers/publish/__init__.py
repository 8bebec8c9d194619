"""Bring a result to others: served on this machine, shared on the hub, exported for llama.cpp and Ollama."""

from helpers.publish.exporting import ExportError, check_template, export_gguf, llama_cpp, modelfile
from helpers.publish.serving import ServingError, command, serving, serving_adapters
from helpers.publish.sharing import SharingError, model_card, publish
