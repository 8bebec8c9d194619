"""The server of several adapters on one base model, by the handlers of `transformers serve`, which itself loads a model each."""

from __future__ import annotations

import json
import sys
import threading
from contextlib import nullcontext
from pathlib import Path

from helpers.models import load_adapter, load_base, load_tokenizer
from helpers.sources import Base

import uvicorn
from fastapi import HTTPException
from fastapi.responses import JSONResponse
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.completion import CompletionHandler
from transformers.cli.serving.model_manager import ModelManager
from transformers.cli.serving.response import ResponseHandler
from transformers.cli.serving.server import build_server
from transformers.cli.serving.utils import GenerationState


class OneAdapter:
    """The shared model as the handlers see it, with one adapter, or none, active while it generates."""

    def __init__(self, model, name: str | None, turn: threading.Lock):
        self.model, self.name, self.turn = model, name, turn

    def __getattr__(self, attribute: str):
        return getattr(self.model, attribute)

    def generate(self, *inputs, **options):
        """Generate when the requests before have been answered."""
        with self.turn:
            if self.name:
                self.model.set_adapter(self.name)
            with nullcontext() if self.name else self.model.disable_adapter():
                return self.model.generate(*inputs, **options)


class Adapters(ModelManager):
    """One base model with its adapters, each under the name that a request gives as its model."""

    def __init__(self, base: Base, folders: dict[str, str], device: str):
        super().__init__(device=device, attn_implementation="sdpa")
        self.tokenizer, model = load_tokenizer(base), load_base(base, "bf16", "sdpa", device)
        for name, folder in folders.items():
            model = load_adapter(model, base, Path(folder), name)
        turn = threading.Lock()
        self.models = {name: OneAdapter(model.eval(), name, turn) for name in folders}
        self.models["base"] = OneAdapter(model, None, turn)

    def load_model_and_processor(self, model_id_and_revision: str, **_):
        """The model of a request; nothing is ever loaded for one."""
        name = model_id_and_revision.rpartition("@")[0]
        if name not in self.models:
            raise HTTPException(404, f"there is no model {name!r} here; there are {', '.join(self.models)}")
        return self.models[name], self.tokenizer

    def get_gen_models(self, cache_dir: str | None = None) -> list[dict]:
        """The names to choose from, as the API lists models."""
        return [{"id": name, "object": "model", "created": 0, "owned_by": "here"} for name in self.models]


def main() -> None:
    """Serve ``sys.argv``: a job as JSON (see :func:`helpers.publish.serving_adapters`) and a port."""
    job, port = json.loads(sys.argv[1]), int(sys.argv[2])
    base = Base(job["name"], Path(job["folder"]), job["revision"])
    manager, state = Adapters(base, job["adapters"], job["device"]), GenerationState()
    handlers = [kind(manager, state) for kind in (ChatCompletionHandler, CompletionHandler, ResponseHandler)]
    app = build_server(manager, *handlers, transcription_handler=None, systemone_handler=None, generation_state=state)

    @app.exception_handler(HTTPException)
    def as_clients_expect(_, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": {"message": error.detail}}, error.status_code)

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")


if __name__ == "__main__":
    main()
