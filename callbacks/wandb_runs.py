"""W&B's side of a run: started, logged to and closed so that neither its server nor its process can end a training."""

import base64
import io
import json
import logging
import os
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, suppress
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_warn

from zfscope.console import console
from zfscope.files import check_writable

# Seconds: for the server's answer, W&B's start, its end (W&B's own: 90, and for ever), and for checkpoints to go up.
ASK_SECONDS, INIT_SECONDS, FINISH_SECONDS, UPLOAD_SECONDS = 5, 10, 10, 120
TEARDOWN_SECONDS = 2  # for W&B's process to hear that this one ends
FOLDERS = {"WANDB_CACHE_DIR": ".cache", "WANDB_CONFIG_DIR": ".config", "WANDB_DATA_DIR": ".local/share"}


class SteadyWandbLogger(WandbLogger):
    """Goes on without W&B where that fails: one warning, and nothing more is sent."""

    failed = False

    def attempt(self, send: Callable[..., Any], *values: Any, **named: Any) -> None:
        """Send something to W&B; after a failure nothing is sent any more."""
        if self.failed:
            return
        try:
            send(*values, **named)
        except Exception as error:  # of W&B, or of the socket to its process
            self.failed = True
            rank_zero_warn(f"W&B failed ({cause_of(error)}); the run goes on, and W&B has it up to here")

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """As Lightning's, or nothing."""
        self.attempt(super().log_metrics, metrics, step)

    def log_hyperparams(self, params: Any) -> None:
        """As Lightning's, or nothing."""
        self.attempt(super().log_hyperparams, params)

    def after_save_checkpoint(self, checkpoint_callback: Checkpoint) -> None:
        """As Lightning's, or nothing."""
        self.attempt(super().after_save_checkpoint, checkpoint_callback)

    def finalize(self, status: str) -> None:
        """As Lightning's, or nothing."""
        self.attempt(super().finalize, status)


def start_run(folder: Path, mode: str, about: Mapping[str, Any], uploads: bool) -> Any:
    """Start a W&B run in a folder: an online one where the server answers, else an offline one, and say so in a line.

    With ``uploads`` there is time at the end for checkpoints. Returns None, with a warning, where W&B cannot start.
    """
    import wandb

    with suppress(ImportError):  # its statistics of itself, for which it would wait once more at the exit
        from wandb.analytics.opentelemetry import opentelemetry_proxy

        opentelemetry_proxy.disable()
    folder.mkdir(parents=True, exist_ok=True)
    _find_folders(folder)
    logging.getLogger("asyncio").addFilter(lambda record: "socket.send() raised" not in record.getMessage())
    settings = {"init_timeout": INIT_SECONDS, "login_timeout": INIT_SECONDS, "silent": True}
    # Pictures are hard links to those of the run folder: once on the disk, whole where either folder is moved.
    settings |= {"allow_media_symlink": True, "symlink": False}
    # ``create_new``: a run that another job of this process left open must not swallow this one's metrics.
    options = {**about, "dir": str(folder), "resume": "allow", "reinit": "create_new"}
    cause = out_of_reach() if mode == "online" else None
    if mode == "online" and cause is None:
        seconds = UPLOAD_SECONDS if uploads else FINISH_SECONDS
        online = wandb.Settings(**settings, finish_timeout=seconds, finish_timeout_raises=True)
        try:
            run = wandb.init(**options, mode="online", settings=online)
            console.print(f"W&B: {run.url}", markup=False, soft_wrap=True)
            return run
        except Exception as error:  # W&B's errors have no common class
            cause = cause_of(error)
        if options["id"]:  # W&B's process still holds the id of the run that did not start
            options["id"] = f"{options['id']}-offline"
    try:
        run = wandb.init(**options, mode="offline", settings=wandb.Settings(**settings, finish_timeout=FINISH_SECONDS))
    except Exception as error:
        away = "" if cause is None else f"; its server is not within reach: {cause}"
        rank_zero_warn(f"W&B cannot start ({cause_of(error)}{away}); this run is logged to CSV files")
        return None
    if cause is not None:
        rank_zero_warn(f"W&B is not within reach ({cause}); this run is logged offline, `wandb sync` sends it later")
    return run


def finish_run(logger: SteadyWandbLogger, exit_code: int) -> None:
    """Close a logger's W&B run in a bounded time; what was not sent is told in a line."""
    import wandb

    run, error = logger.experiment, None
    wandb.termsetup(wandb.Settings(silent=True), None)  # what it would warn of is told in one line
    if not logger.failed:
        error = within(run.settings.finish_timeout + 3, lambda: run.finish(exit_code=exit_code))
        if error is None:
            return
        # It must hide neither the result of the run nor the exception that ended it.
        told = "" if run.offline else f"; `wandb sync {run.settings.sync_dir}` sends what is missing"
        rank_zero_warn(f"W&B did not close the run ({cause_of(error)}){told}")
    # Its process is gone, or waits for the server: at the exit it would be waited for again. It ends by itself.
    within(TEARDOWN_SECONDS, wandb.teardown)


def out_of_reach() -> str | None:
    """Why W&B's server cannot take a run: no key, no answer in time, an error; None where it can.

    ``wandb.init`` would ask for half a minute and then keep the run's id, so that no offline run can have it.
    """
    from wandb.sdk import wandb_setup
    from wandb.sdk.lib import wbauth

    try:
        place = wandb_setup.singleton().settings
        with redirect_stderr(io.StringIO()):  # where it says that there is a key
            credentials = wbauth.authenticate_session(host=place.base_url, source="zfscope", prompt=False)
    except Exception as error:  # such as a key of the wrong length
        return cause_of(error)
    if credentials is None:
        return f"no API key for {place.base_url}: wandb login stores one"
    request = urllib.request.Request(
        f"{place.base_url.rstrip('/')}/graphql",
        json.dumps({"query": "query Viewer { viewer { id } }"}).encode(),
        {"Content-Type": "application/json", "User-Agent": "zfscope"},
    )
    key = getattr(credentials, "api_key", None)
    if key is not None:
        request.add_unredirected_header("Authorization", f"Basic {base64.b64encode(f'api:{key}'.encode()).decode()}")
    proxies = {kind: getattr(place, f"{kind}_proxy", None) for kind in ("http", "https")}
    own = {kind: proxy for kind, proxy in proxies.items() if proxy}
    opener = urllib.request.build_opener(*([urllib.request.ProxyHandler(own)] if own else []))
    error = within(ASK_SECONDS, lambda: opener.open(request, timeout=ASK_SECONDS).close())
    if isinstance(error, urllib.error.HTTPError):
        error.close()
        if error.code in (401, 403):
            return None if key is None else f"{place.base_url} does not take the API key, HTTP {error.code}"
        return f"{place.base_url} answers HTTP {error.code}"
    if isinstance(error, TimeoutError) or isinstance(getattr(error, "reason", None), TimeoutError):
        return f"{place.base_url} did not answer in {ASK_SECONDS} s"
    if error is None or isinstance(getattr(error, "reason", None), ssl.SSLError):  # W&B may know the certificate
        return None
    return f"{place.base_url}: {cause_of(error)}"


def within(seconds: float, work: Callable[[], Any]) -> Exception | None:
    """Do some work, and give it up after a time: what it raised, ``TimeoutError`` where it has not ended, or None."""
    errors: list[Exception] = []

    def run() -> None:
        try:
            work()
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        return TimeoutError(f"not ended in {seconds} s")
    return errors[0] if errors else None


def cause_of(error: BaseException) -> str:
    """The first line of an error, or its kind."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _find_folders(folder: Path) -> None:
    """Where there is no home to write to, W&B's own files go to the run folder; else its process tells its log."""
    home = os.environ.get("HOME") or "/proc"
    for variable, place in FOLDERS.items():
        try:
            check_writable(os.environ.get(variable) or Path(home, place), variable)
        except OSError:
            os.environ[variable] = str(folder.absolute())
