"""Publishing a result on the Hugging Face hub, with a model card made from the run's record. Nothing here runs by itself.

Tokens are those of ``hf auth login`` or the environment; they are never an argument and never stored here.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

from helpers.comparison import table
from helpers.memory import GB
from helpers.models import BASE_FILE, load_tokenizer
from helpers.records import FILE_NAME, RunRecord, load
from helpers.settings import Settings
from helpers.sources import MANIFEST, SMOLLM2_HUB_ID, explain, resolve

from huggingface_hub import HfApi, ModelCard, ModelCardData
from huggingface_hub.errors import LocalTokenNotFoundError

LICENCES = {"smollm2": "apache-2.0", "llama-2": "llama2", "llama-3": "llama3"}  # by a part of the base model's name


class SharingError(RuntimeError):
    """Something that cannot be published; the message says why and gives the next step."""


def hub_id(source: str) -> str:
    """The name of a base model on the hub; the packaged default is a copy of a hub model."""
    return SMOLLM2_HUB_ID if source == "smollm2-135m" else source


def model_card(record: RunRecord, repo: str, merged: bool, base: RunRecord | None = None) -> ModelCard:
    """A card from a run's record: base, data, licence, method, scores with their interval, hardware.

    Args:
        record: of the finished run.
        merged: whether the files are a whole model rather than an adapter.
        base: the record of the untouched model, for the comparison.
    """
    source, settings, training = hub_id(record.model["source"]), record.settings, record.training
    on_hub = "/" in source and not source.startswith(("/", "."))
    licence = next((name for part, name in LICENCES.items() if part in source.lower()), None)
    data = record.data["source"]
    card = ModelCardData(
        license=licence or "other", base_model=source if on_hub else None, pipeline_tag="text-generation",
        datasets=[data] if "/" in data and not Path(data).suffix else None,
        library_name="transformers" if merged else "peft", tags=["fine-tuned", record.method],
    )  # fmt: skip
    copy = " The weights trained on were a copy expanded from 4 bits, so on the original ones answers may differ."
    at = f", revision `{record.model['revision']}`" if record.model["revision"] else ""
    from_commit = f", revision `{record.data['revision']}`" if record.data.get("revision") else ""
    load_it = (
        f'model = AutoModelForCausalLM.from_pretrained("{repo}")' if merged
        else f'model = AutoPeftModelForCausalLM.from_pretrained("{repo}")  # fetches the base model too'
    )  # fmt: skip
    package, name = ("transformers", "AutoModelForCausalLM") if merged else ("peft", "AutoPeftModelForCausalLM")
    versions = ", ".join(f"{k} {v}" for k, v in record.environment.items() if v and k != "platform")
    text = f"""---
{card.to_yaml()}
---
# {repo.split("/")[-1]}

{source if on_hub else "A local model"}{at}, fine-tuned with {record.method}; {"merged into one model" if merged else "an adapter for that base"}.{copy if record.model["source"] == "smollm2-135m" else ""}

| | |
|---|---|
| data | {data}{from_commit}: {record.data["rows"]["train"]:,} rows to train on, {record.data["rows"]["test"]:,} to test on |
| trained | {training["trainable"]:,} of {training["total"]:,} parameters, {settings["max_steps"]} steps of {settings["batch_size"] * settings["accumulation"]} rows, learning rate {settings["learning_rate"]:g}, {settings["schedule"]} |
| adapter | rank {settings["rank"]}, alpha {settings["alpha"]}, {settings["targets"]} |
| hardware | {record.device["name"]}; {training["train_seconds"]:,.0f} s; peak memory {record.memory["peak"] / GB:.2f} GB |
| software | {versions} |
| licence | {licence or "that of the base model: look it up before you share this"} |

## Scores

{_markdown([base, record] if base else [record])}

Held-out loss is in nats a token. A share of right answers has its 95 % Wilson interval. Both are on the test rows of the data
above and say nothing about other tasks.

## Use

```python
from {package} import {name}

{load_it}
```
"""
    return ModelCard(text)


def _markdown(records: list[RunRecord]) -> str:
    rows = table(records)
    rows = rows[[name.startswith(("held-out", "exact")) for name in rows.index]]
    lines = [["", *rows.columns], ["---"] * (1 + len(rows.columns)), *([name, *row] for name, row in rows.iterrows())]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


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
    """
    record, merged = load(settings.folder), (folder / "config.json").is_file()
    base_file = settings.series_folder / f"base-s{settings.seed}" / FILE_NAME
    card = model_card(record, repo, merged, load(base_file) if base_file.is_file() else None)
    api = HfApi()
    with tempfile.TemporaryDirectory() as scratch:
        ours = shutil.ignore_patterns(MANIFEST, BASE_FILE)  # about the files as they lie here
        upload = Path(shutil.copytree(folder, Path(scratch) / "upload", ignore=ours))
        if not merged:
            load_tokenizer(resolve(settings)).save_pretrained(upload)
            config = json.loads((upload / "adapter_config.json").read_text(encoding="utf-8"))
            config["base_model_name_or_path"] = hub_id(settings.model)  # not the folder it lay in here
            config["revision"] = record.model["revision"]
            (upload / "adapter_config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
        card.save(upload / "README.md")
        try:
            api.create_repo(repo, private=private, exist_ok=True)
            if private and not api.repo_info(repo).private:
                raise SharingError(f"{repo} exists and is public: choose another name, or publish with private=False")
            api.upload_folder(repo_id=repo, folder_path=upload, commit_message="Upload from a fine-tuning run")
        except LocalTokenNotFoundError:
            raise SharingError(_token("there is no token")) from None
        except SharingError:
            raise
        except Exception as error:
            code = getattr(getattr(error, "response", None), "status_code", None)
            if code == 401:
                raise SharingError(_token("the hub does not accept the token, or there is none")) from None
            if code == 403:
                raise SharingError(_token(f"the token may not write to {repo}")) from None
            raise SharingError(f"{explain(error, 'model', repo)}; nothing was published") from None
    return f"{api.endpoint}/{repo}"


def _token(fault: str) -> str:
    return (
        f"{fault}: make one with the role *write* in the hub's settings under Access Tokens, then run `hf auth login`; "
        "nothing was published"
    )
