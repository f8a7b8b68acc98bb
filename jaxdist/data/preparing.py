"""Preparing a TFDS data set as array_record, so that an error comes in seconds and names its cure."""

import difflib
import importlib.util
import os
import socket
import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from jaxdist.data import tfds as prepared_sets
from jaxdist.errors import Refused

# All other stock builders call TensorFlow, if only to open a file.
WITHOUT_TENSORFLOW = ("digits", "german_credit_numeric")
SECONDS = 10.0


def prepare(
    name: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    say: Callable[[str], None] = print,
) -> Path:
    """Downloads a data set if need be and writes it as array_record; once prepared it does nothing.

    Before anything is downloaded it is looked whether the hosts can be reached, for ten seconds;
    `JAXDIST_OFFLINE=1` says that they can not.

    Args:
      name: `"digits"`, or any builder of TFDS: `"mnist"`, `"emnist/balanced"`.
      data_dir: where to; None: `TFDS_DATA_DIR`, or `~/tensorflow_datasets`.
      say: what to do with a line for the user.

    Returns:
      The folder of the prepared set.

    Raises:
      Refused: an unknown name; TensorFlow or another package is missing; no network: names the files
        and the folder to put them in by hand.
    """
    name = name.removeprefix(prepared_sets.PREFIX)
    root = prepared_sets.directory(data_dir)
    full = prepared_sets.PREFIX + name
    if any(f"{there}:".startswith(f"{full}:") for there in prepared_sets.prepared(root)):
        say(f"already prepared: {prepared_sets.find(full, data_dir=root)}")
        return prepared_sets.find(full, data_dir=root)
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import downloader
    from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

    from jaxdist.data import digits_builder

    own = {"digits": digits_builder.Digits}
    stock = name.split(":")[0].split("/")[0]
    known = sorted({*tfds.list_builders(with_community_datasets=False), *own})
    if stock not in known:
        near = difflib.get_close_matches(stock, known, 3) or ["digits", "mnist"]
        raise Refused(f"there is no data set {stock!r}; did you mean {', '.join(near)}?")
    if stock not in WITHOUT_TENSORFLOW and importlib.util.find_spec("tensorflow") is None:
        raise Refused(
            f"preparing {name} needs TensorFlow, reading it afterwards does not: write "
            f"pip install -c constraints.txt '.[prepare]', then jaxdist data prepare {name} again"
        )
    builder = tfds.builder(name, data_dir=root, file_format="array_record")
    manual = root / "downloads" / "manual"
    files = {url: str(info.filename) for url, info in (builder.url_infos or {}).items()}
    _reach(name, {url: file for url, file in files.items() if not (manual / file).exists()}, manual)
    say(f"preparing {name} in {root}")
    downloader.MAX_RETRIES = 2  # ten of them take minutes
    try:
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(manual_dir=manual)
        )
    except ImportError as error:
        raise Refused(f"preparing {name} needs a package that is missing: {error}") from None
    except (OSError, AssertionError, NonMatchingChecksumError) as error:
        raise Refused(f"{name} was not prepared: {error}") from None
    return prepared_sets.find(full, data_dir=root)


def reachable(host: str, *, seconds: float = SECONDS) -> bool:
    """Whether a host answers on its https port within a time; finding its address counts."""
    if os.environ.get("JAXDIST_OFFLINE", "") not in ("", "0"):
        return False
    if urllib.request.getproxies().get("https"):
        return True  # the proxy is asked, and not the host
    answered: list[bool] = []

    def ask() -> None:
        try:
            socket.create_connection((host, 443), timeout=seconds).close()
            answered.append(True)
        except OSError:
            answered.append(False)

    # A look-up of a name has no time limit of its own.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return answered == [True]


def _reach(name: str, files: dict[str, str], manual: Path) -> None:
    for host in sorted({urlsplit(url).hostname or "" for url in files}):
        if not reachable(host):
            wanted = ", ".join(f"{file} (from {url})" for url, file in sorted(files.items()))
            raise Refused(
                f"{name} can not be downloaded, {host} does not answer: put into {manual} the files "
                f"{wanted}, and write jaxdist data prepare {name} again"
            )
