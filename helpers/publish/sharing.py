"""Publishing a result on the Hugging Face hub, with a card made from its record; tokens come from ``hf auth login`` only."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from pathlib import Path

from helpers.comparison import table
from helpers.models import BASE_FILE, load_tokenizer
from helpers.records import FILE_NAME, RunRecord, load, read_json
from helpers.settings import ROOT, Settings
from helpers.sources import MANIFEST, SMOLLM2_HUB_ID, ModelError, check_adapter, check_files, explain, resolve

from huggingface_hub import HfApi, ModelCard, ModelCardData
from huggingface_hub.errors import LocalTokenNotFoundError

# by a part of the base model's name, the first that is found
LICENSES = {"smollm2": "apache-2.0", "llama-2": "llama2"}
LICENSES |= {f"llama-3.{n}": f"llama3.{n}" for n in (1, 2, 3)} | {"llama-3": "llama3"}


class SharingError(RuntimeError):
    """Something that cannot be published; the message says why and gives the next step."""


def hub_id(source: str) -> str | None:
    """The name of a model or of data on the hub, None for local ones; the packaged default is a copy of a hub model."""
    is_file = source.endswith((".json", ".jsonl", ".csv", ".parquet", ".gz", ".bz2", ".zst", ".zip"))
    named = re.fullmatch(r"\w[\w.-]*/[\w.-]+", source) and not is_file and not (ROOT / source).exists()
    return SMOLLM2_HUB_ID if source == "smollm2-135m" else source if named else None


def model_card(record: RunRecord, repo: str, merged: bool, base: RunRecord | None = None) -> ModelCard:
    """A card from a run's record: base, data, license, method, scores with their interval, hardware.

    Args:
        record: of the finished run.
        merged: whether the files are a whole model rather than an adapter.
        base: the record of the untouched model, for the comparison.
    """
    source, data = hub_id(record.model["source"]), hub_id(record.data["source"])
    license = next((name for part, name in LICENSES.items() if part in (source or "").lower()), None)
    on_page = ModelCardData(
        library_name="transformers" if merged else "peft",
        pipeline_tag="text-generation",
        license=license or "other",
        base_model=source,
        tags=["fine-tuned", record.method],
        datasets=[data] if data else None,
    )
    scores = table([base, record] if base else [record])
    scores = scores[scores.index.str.startswith(("held-out", "exact"))]
    facts = {"base": source or "A local model", "license": license, "scores": scores}
    facts["data"] = data or Path(record.data["source"]).name  # no path of this machine
    template = str(Path(__file__).with_name("model_card.md"))
    return ModelCard.from_template(on_page, template, repo=repo, record=record, merged=merged, **facts)


def publish(settings: Settings, repo: str, folder: Path, private: bool = True) -> str:
    """Upload an adapter or a merged model with its tokenizer and card.

    Args:
        settings: of the finished run that made it.
        repo: "owner/name" on the hub; made if it is not there.
        folder: what to upload: the run's ``adapter``, or the folder of a merged or fully tuned model.
        private: look at it yourself first; make it public on its page. An existing public one is refused unless False.

    Returns:
        The address of the model's page.

    Raises:
        SharingError: without a token, with one that may not write, or for a public repository.
        ModelError: for files that are damaged.
    """
    record, merged = load(settings.folder), (folder / "config.json").is_file()
    check_files(folder) if merged else check_adapter(folder)
    base_file = settings.series_folder / f"base-s{settings.seed}" / FILE_NAME
    card = model_card(record, repo, merged, load(base_file) if base_file.is_file() else None)
    api = HfApi()
    with tempfile.TemporaryDirectory() as scratch:
        of_this_machine = shutil.ignore_patterns(MANIFEST, BASE_FILE)
        upload = Path(shutil.copytree(folder, Path(scratch) / "upload", ignore=of_this_machine))
        if not merged:
            load_tokenizer(resolve(settings)).save_pretrained(upload)
            config = read_json(upload / "adapter_config.json", ModelError)
            # not the folder it lay in here
            config["base_model_name_or_path"] = hub_id(settings.model) or Path(settings.model).name
            config["revision"] = record.model["revision"]
            (upload / "adapter_config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
        card.save(upload / "README.md")
        try:
            api.create_repo(repo, private=private, exist_ok=True)
            if private and not api.repo_info(repo).private:
                raise SharingError(f"{repo} exists and is public: choose another name, or publish with private=False")
            api.upload_folder(repo_id=repo, folder_path=upload, commit_message="Upload from a fine-tuning run")
        except SharingError:
            raise
        except Exception as error:
            raise SharingError(f"{_cause(error, repo)}; nothing was published") from None
    return f"{api.endpoint}/{repo}"


def _cause(error: Exception, repo: str) -> str:
    code = getattr(getattr(error, "response", None), "status_code", None)
    if not isinstance(error, LocalTokenNotFoundError) and code not in (401, 403):
        return explain(error, "model", repo)
    return (
        f"there is no token, or it may not write to {repo}: make one with the role *write* in the hub's settings under "
        "Access Tokens, then run `hf auth login`"
    )
