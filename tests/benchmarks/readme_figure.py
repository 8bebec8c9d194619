"""Draw the figure of README from the reference records: python -m tests.benchmarks.readme_figure"""

from helpers import plotting
from helpers.comparison import by_method
from helpers.memory import GB
from helpers.records import load_reference
from helpers.settings import ROOT

import matplotlib.pyplot as plt

TARGET = ROOT / "notebooks" / "images" / "small-cpu.png"


def main() -> None:
    records = load_reference("small-cpu")
    trained = [r for r in records if r.method != "base"]
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 3.2), layout="constrained")
    plotting.loss_curves([r for r in trained if r.seed == 0], left).set_title("Training loss, seed 0")
    left.legend(fontsize=7)
    groups = by_method(trained)
    peaks = {method: max(r.memory["predicted"]["total"] for r in runs) / GB for method, runs in groups.items()}
    plotting.bars(peaks, middle, "GB").set_title("Predicted peak of training memory")
    plotting.scores(records, right)
    first = trained[0]
    seeds = f"{len(groups['lora'])} seed{'s' * (len(groups['lora']) > 1)}"
    figure.suptitle(
        f"SmolLM2-135M-Instruct, LoRA and full fine-tuning, {seeds}: {first.device['name']}, {first.finished[:10]}"
    )
    TARGET.parent.mkdir(exist_ok=True)
    figure.savefig(TARGET, dpi=110, metadata={"Software": None})
    print(TARGET.relative_to(ROOT))


if __name__ == "__main__":
    main()
