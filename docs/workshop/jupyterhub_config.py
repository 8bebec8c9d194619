"""A JupyterHub for a room: `make hub` starts it, docs/instructor.md explains it. All is set by environment variables.

Everybody logs in with a name of their own and one shared password. All seats run as the account that starts the hub: they
are kept apart from accidents, not from each other. For people who must not read each other's files use another spawner.
"""

import os
import shutil
import sys
from pathlib import Path

import psutil

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = Path(os.environ.get("WORKSHOP_FOLDER", REPOSITORY / "runs" / "workshop")).resolve()
GPUS = (
    os.environ.get("WORKSHOP_GPUS", "").replace(",", " ").split()
)  # such as "0,1,2,3,4,5"; empty: seats compute on the CPU
SEATS = int(os.environ.get("WORKSHOP_SEATS", max(1, len(GPUS))))
CORES = max(1, psutil.cpu_count() // SEATS)
MEMORY = int(float(os.environ.get("WORKSHOP_SEAT_GB", 0.9 * psutil.virtual_memory().total / 1e9 / SEATS)) * 1e9)
IDLE_MINUTES = float(os.environ.get("WORKSHOP_IDLE_MINUTES", 60))
PASSWORD = os.environ.get("WORKSHOP_PASSWORD", "")
if len(PASSWORD) < 8:
    sys.exit("error: set WORKSHOP_PASSWORD to at least eight characters; who knows it can run commands on this machine")


def prepare_seat(spawner):
    """Give a seat its own copy of the series, its share of the cores, and one GPU."""
    seat = (spawner.user.id - 1) % SEATS  # users are numbered in the order of their first login
    home = FOLDER / spawner.user.name
    if not home.is_dir():  # a copy of its own, so that nobody overwrites the notebooks or the runs of another
        for part in ("helpers", "notebooks"):
            ignored = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
            shutil.copytree(REPOSITORY / part, home / part, ignore=ignored)
    spawner.notebook_dir = str(home / "notebooks")
    spawner.environment |= {
        "PYTHONPATH": str(home),
        "MODELS_DIR": os.environ.get("MODELS_DIR", str(REPOSITORY / "models")),
    }
    spawner.environment |= {"OMP_NUM_THREADS": str(CORES), "HOME": str(home)}
    # one index for both vendors. Not ROCR_VISIBLE_DEVICES as well: HIP would count within what that leaves
    gpu = GPUS[seat % len(GPUS)] if GPUS else ""
    spawner.environment |= {"HIP_VISIBLE_DEVICES": gpu, "CUDA_VISIBLE_DEVICES": gpu}
    first = seat * CORES % psutil.cpu_count()
    limits = ["prlimit", f"--data={MEMORY}", "taskset", "--cpu-list", f"{first}-{first + CORES - 1}"]
    spawner.cmd = [*limits, str(Path(sys.executable).parent / "jupyterhub-singleuser")]


c = get_config()  # noqa: F821 - JupyterHub defines it
FOLDER.mkdir(parents=True, exist_ok=True)
c.JupyterHub.bind_url = os.environ.get("WORKSHOP_URL", "http://127.0.0.1:8000")
c.JupyterHub.db_url = f"sqlite:///{FOLDER}/hub.sqlite"
c.JupyterHub.cookie_secret_file = str(FOLDER / "cookie_secret")
c.ConfigurableHTTPProxy.pid_file = str(FOLDER / "proxy.pid")
c.JupyterHub.active_server_limit = SEATS

c.JupyterHub.authenticator_class = "shared-password"
c.SharedPasswordAuthenticator.user_password = PASSWORD
c.Authenticator.allow_all = True

c.JupyterHub.spawner_class = "simple"
c.Spawner.pre_spawn_hook = prepare_seat
c.Spawner.default_url = "/lab"
c.Spawner.start_timeout = 120
c.Spawner.http_timeout = 120
c.Spawner.env_keep = ["PATH", "LANG", "LD_LIBRARY_PATH", "HF_HUB_OFFLINE", "HF_HUB_CACHE", "HF_DATASETS_CACHE",
                      "TOKENIZERS_PARALLELISM", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_"]  # fmt: skip
c.SimpleLocalProcessSpawner.home_dir_template = str(FOLDER / "{username}")

seconds = int(60 * IDLE_MINUTES)
c.JupyterHub.services = [{
    "name": "idle-culler",
    "command": [sys.executable, "-m", "jupyterhub_idle_culler", f"--timeout={seconds}", f"--cull-every={max(1, min(60, seconds // 3))}"],
}]  # fmt: skip
c.JupyterHub.load_roles = [{
    "name": "idle-culler", "services": ["idle-culler"],
    "scopes": ["list:users", "read:users:activity", "read:servers", "delete:servers"],
}]  # fmt: skip
