"""Settings of a run and the profiles they come from: the only place where configuration lives. Never imports torch."""

from __future__ import annotations

import difflib
import tomllib
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
AFTER_SFT = ("dpo", "grpo")  # they continue a LoRA adapter, in 11_after_sft
METHODS = ("full", "lora", "qlora", "dora", "rslora", *AFTER_SFT)
IGNORED = -100  # the label of a token that takes no part in the loss, as torch's cross_entropy has it


class SettingsError(ValueError):
    """A setting that is unknown, of the wrong type or out of range; the message says which and what to do."""


@dataclass(frozen=True)
class Settings:
    """Everything that decides the result of a run. Frozen: :meth:`change` derives another.

    Lengths are in tokens, rates are per optimizer step, ``None`` means "decided at run time and recorded".
    """

    profile: str
    method: str  # one of METHODS
    seed: int
    # the model
    model: str  # "tiny", "smollm2-135m", a hub id or a folder
    revision: str | None  # 40 hexadecimal digits for a hub model, None for what is made or packaged here
    # the data
    data: str  # "bundled" (scored questions and conversations), the "conversations" alone, a hub id, or a file of yours
    data_revision: str | None
    train_rows: int
    validation_rows: int
    test_rows: int
    harder_rows: int  # bundled data only: questions with larger numbers than any in training
    max_length: int
    # the adapter (ignored by `full`)
    rank: int
    alpha: int
    dropout: float
    targets: str  # "all-linear" or names joined by commas, as in "q_proj,v_proj"
    # the optimisation
    learning_rate: float
    max_steps: int
    batch_size: int  # rows on the device at a time, unless batch_tokens says how many tokens
    accumulation: int  # such batches for each optimizer step
    schedule: str
    warmup_steps: int
    weight_decay: float
    max_grad_norm: float
    # how the device is used: None lets helpers.device decide and say why
    precision: str | None = None  # "bf16" or "fp32": of the arithmetic and of the weights it reads
    attention: str | None = None  # "varlen", "sdpa" or "eager"
    checkpointing: bool | None = None
    kernels: str | None = None  # "liger" or "torch": who computes norms, rotations and gates on a GPU
    compile: bool | None = None  # each decoder layer by torch.compile: pays in long runs of one shape
    products: str | None = None  # "fp8": the matrix products of the decoder layers in fp8; "plain": in `precision`
    batch_tokens: int | None = None  # pack whole rows into micro-batches of this many tokens
    devices: int | None = None  # that helpers.engine.launch starts a process for; nothing else looks at it
    # the evaluation
    max_new_tokens: int = 64
    eval_batch_size: int = 80
    temperature: float = 1.0  # of the answers that GRPO samples; every evaluation is greedy
    # where results go
    save_steps: int = 0  # optimizer steps between checkpoints to resume from; 0 keeps none
    runs_dir: str = "runs"
    report_to: str = "none"  # "tensorboard" also writes events for `tensorboard --logdir runs/<profile>/tensorboard`

    @property
    def folder(self) -> Path:
        """Where this run is kept: ``runs/<profile>/<method>-s<seed>``; a relative ``runs_dir`` is of the repository."""
        return self.series_folder / f"{self.method}-s{self.seed}"

    @property
    def series_folder(self) -> Path:
        """Where all runs of this profile are kept."""
        return ROOT / Path(self.runs_dir).expanduser() / self.profile

    def change(self, **changes) -> Settings:
        """A copy with some settings changed; a value of None keeps the present one.

        A pin belongs to its model or data, so it changes with them. Limits of length follow the data, unless you set them.

        Raises:
            SettingsError: for an unknown name, a wrong type or a value out of range.
        """
        changes = {name: checked(name, value) for name, value in changes.items() if value is not None}
        for source, pin in (("model", "revision"), ("data", "data_revision")):
            if changes.get(source, getattr(self, source)) != getattr(self, source):
                changes = {pin: PINS.get(changes[source])} | changes
        data = changes.get("data", self.data)
        before, after = _lengths(self.profile, self.data), _lengths(self.profile, data)
        changes = {name: after[name] for name in after if getattr(self, name) == before[name]} | changes
        return replace(self, **changes)

    def share(self, processes: int) -> tuple[int, int]:
        """Batch size and accumulation of each process, so that a step of all has the rows of a step of one.

        Accumulation is divided first: that keeps the size of a batch on a device, and with it the speed.

        Raises:
            SettingsError: if the rows of a step cannot be divided evenly.
        """
        if self.accumulation % processes == 0:
            return self.batch_size, self.accumulation // processes
        if self.batch_size % processes == 0 and not self.batch_tokens:
            return self.batch_size // processes, self.accumulation
        what = "accumulation" if self.batch_tokens else "batch_size or accumulation"
        raise SettingsError(
            f"a step of {self.batch_size} x {self.accumulation} rows (batch_size x accumulation) cannot be divided evenly "
            f"among {processes} processes; make {what} a multiple of {processes}"
        )

    def table(self) -> dict[str, object]:
        """The settings as one column of names and values, for a notebook to show."""
        return asdict(self)


def _lengths(profile: str, data: str) -> dict[str, int]:
    """The limits of length for this data: those of the profile for its own, generous ones for yours."""
    values = PROFILES[profile]
    least = {"max_length": 1024, "max_new_tokens": 200} if data != values["data"] else {}
    return {name: max(values[name], least.get(name, 0)) for name in ("max_length", "max_new_tokens")}


def shown(path: Path) -> str:
    """A path for people: inside the repository without the part that differs between machines."""
    path = Path(path)
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


_TYPES = {f.name: f.type for f in fields(Settings)}
_FROM_ZERO = "seed validation_rows harder_rows dropout warmup_steps weight_decay max_grad_norm save_steps"
_LEAST = dict.fromkeys(_FROM_ZERO.split(), 0) | {"learning_rate": 1e-7, "temperature": 1e-3}  # of others: 1
_AT_MOST = 10_000_000  # of any number not named here: a slip of the keyboard, not a run
_MOST = {"seed": 2**32 - 1, "max_steps": 1_000_000, "alpha": 100_000, "max_new_tokens": 100_000, "weight_decay": 1}
_MOST |= {"dropout": 0.999, "learning_rate": 0.999}
_CHOICES = {
    "method": METHODS,
    "precision": ("bf16", "fp32"),
    "attention": ("varlen", "sdpa", "eager"),
    "kernels": ("liger", "torch"),
    "products": ("plain", "fp8"),
    "report_to": ("none", "tensorboard"),
    "schedule": ("constant", "constant_with_warmup", "linear", "cosine"),
}


def nearest(name: str, known) -> str:
    """A clause that names the closest of the known names, or lists them all."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(known))}"


def checked(name: str, value):
    """The value of one setting, of the right type and in range; a SettingsError says what was given and what is expected."""
    if name not in _TYPES:
        raise SettingsError(f"there is no setting {name!r}; {nearest(name, _TYPES)}")
    expected = _TYPES[name].split(" | ")[0]
    if expected == "float" and type(value) is int:
        value = float(value)
    if type(value).__name__ != expected:
        raise SettingsError(f"{name} must be of type {expected}, not {type(value).__name__} ({value!r})")
    if name in _CHOICES and value not in _CHOICES[name]:
        raise SettingsError(f"{name} must be one of {', '.join(_CHOICES[name])}, not {value!r}")
    if expected in ("int", "float"):
        least, most = _LEAST.get(name, 1), _MOST.get(name, _AT_MOST)
        if not least <= value <= most:
            raise SettingsError(f"{name} must be between {least} and {most:,}, not {value!r}")
        if name == "max_grad_norm" and 0 < value < 1e-3:
            raise SettingsError(f"max_grad_norm must be 0, which clips nothing, or at least 0.001, not {value!r}")
    if expected == "str" and not value.strip():
        raise SettingsError(f"{name} must not be empty")
    return value


def _read_profiles() -> tuple[dict[str, dict], dict[str, str]]:
    tables = tomllib.loads(Path(__file__).with_name("profiles.toml").read_text(encoding="utf-8"))
    common, pins = tables.pop("common"), tables.pop("pins")
    profiles: dict[str, dict] = {}
    for name, values in tables.items():
        profiles[name] = profiles.get(values.pop("inherits", None), common) | values
    return profiles, pins


# settings by profile (with `rates`, the learning rate by method), and the pinned revision by hub model or data set
PROFILES, PINS = _read_profiles()


def settings_for(profile: str, method: str = "lora", **changes) -> Settings:
    """The settings of a profile and a method, with your changes applied.

    Args:
        profile: one of :data:`PROFILES`, from ``helpers/profiles.toml``.
        method: one of :data:`METHODS`; it decides the default learning rate.
        changes: settings by name; None keeps the profile's value.

    Raises:
        SettingsError: for an unknown profile or method, or a change that is not valid.
    """
    if profile not in PROFILES:
        raise SettingsError(f"there is no profile {profile!r}; {nearest(str(profile), PROFILES)}")
    values = dict(PROFILES[profile])
    rates = values.pop("rates")
    pins = {"revision": PINS.get(values["model"]), "data_revision": PINS.get(values["data"])}
    rate = rates.get(checked("method", method), rates["lora"])
    return Settings(profile=profile, method=method, learning_rate=rate, **pins, **values).change(**changes)
