"""Snapshots in a folder on a web server: which there are, how large, and which version.

Problem: a folder of published raw snapshots holds up to 128 files of up to 3 GB, and the server may or may not show a
list of them. In this order:

1. names given by the user;
2. names found in the page that the server gives for the folder's address;
3. the names that the published runs have, each asked for (HEAD): one snapshot per 32 Mi images and width,

       PREFIX-KIMG7-STD3.pkl,   KIMG = floor(k 2^25 / 1000), k = 1, 2, ...,   STD in {0.050, 0.100},

   where PREFIX is network-snapshot, or the folder's own name.
"""

import http.client
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from email.message import Message

from autoguidance.ema import Profile
from autoguidance.errors import UserError
from autoguidance.zoo.download import address, is_url
from autoguidance.zoo.runs import check_one_network, snapshot_profile

PUBLISHED_INTERVAL = 1 << 25
PUBLISHED_STDS = (0.05, 0.1)
PUBLISHED_COUNT = 64  # the longest published runs: 2 Gi images
_NAME = re.compile(r"(?:[A-Za-z0-9_.+-]+-\d{7}-\d\.\d{3}\.pkl|\d{11}-\d\.\d{3}\.safetensors)")
_TIMEOUT_SECONDS = 30.0
_TRIES = 3
_PARALLEL = 8  # requests that only ask whether a file is there; the server's answer takes far longer than ours
_PAGE_BYTES = 4 << 20
PAUSE_SECONDS = 1.0


@dataclass(frozen=True)
class RemoteSnapshot:
    """A stored average on a web server.

    Attributes:
        num_images: images seen.
        ema_std: relative EMA width.
        url: its address.
        size_bytes: its size as the server says.
        version: the server's ETag or date, or "".
    """

    num_images: int
    ema_std: float
    url: str
    size_bytes: int
    version: str

    @property
    def name(self) -> str:
        return urllib.parse.unquote(self.url.rpartition("/")[2])

    @property
    def profile(self) -> Profile:
        return self.num_images, self.ema_std


def list_remote(url: str, names: Sequence[str] | None = None) -> tuple[list[RemoteSnapshot], list[str]]:
    """The snapshots at an address, sorted by images, then width; and the names that should be there but are not.

    Args:
        url: http(s) address of the folder.
        names: names of the files; None: ask the server, as the module says.

    Raises: UserError where the server cannot be reached, there is no snapshot, or a file that was named is missing.
    """
    listed = list(dict.fromkeys(names)) if names is not None else _names_on_page(url)
    if listed:
        for name in listed:
            if not _NAME.fullmatch(name):
                raise UserError(
                    f"{name[:100]!r} is not a snapshot's name (PREFIX-KIMG7-STD3.pkl or NNNNNNNNNNN-STD3.safetensors)"
                )
        found, missing = _ask_for(url, listed), []
        absent = [name for name in listed if name not in found]
        if absent:
            raise UserError(f"{address(url, absent[0])} is listed but not there ({len(absent)} of {len(listed)} files)")
    else:
        found, missing = _probe(url)
    if not found:
        raise UserError(
            f"{url}: no snapshots there; the server shows no list and has no file named as in published runs: check "
            "the address, or give the names with --list FILE"
        )
    check_one_network(found, url)
    return sorted(found.values(), key=lambda snapshot: snapshot.profile), missing


def _names_on_page(url: str) -> list[str]:
    answer = _request(url.rstrip("/") + "/", "GET", read=True)
    if answer is None:
        return []
    headers, body = answer
    if not headers.get_content_type().startswith(("text/", "application/xml", "application/json")):
        return []
    return sorted(set(_NAME.findall(urllib.parse.unquote(body.decode("utf-8", "replace")))))


def _probe(url: str) -> tuple[dict[str, RemoteSnapshot], list[str]]:
    for prefix in ("network-snapshot", urllib.parse.unquote(url.rstrip("/").rpartition("/")[2])):
        found: dict[str, RemoteSnapshot] = {}
        asked: list[str] = []
        first = 1
        while True:
            count = PUBLISHED_COUNT if first == 1 else PUBLISHED_COUNT // 4
            names = [
                f"{prefix}-{step * PUBLISHED_INTERVAL // 1000:07d}-{std:.3f}.pkl"
                for step in range(first, first + count)
                for std in PUBLISHED_STDS
            ]
            here = _ask_for(url, [name for name in names if _NAME.fullmatch(name)])
            found.update(here)
            asked += names
            first += count
            if names[-1] not in here and names[-2] not in here:
                break
        if found:
            last = max(index for index, name in enumerate(asked) if name in found)
            return found, [name for name in asked[:last] if name not in found]
    return {}, []


def _ask_for(url: str, names: Sequence[str]) -> dict[str, RemoteSnapshot]:
    def ask(name: str) -> RemoteSnapshot | None:
        where = address(url, name)
        answer = _request(where, "HEAD")
        profile = snapshot_profile(name)
        if answer is None or profile is None:
            return None
        size = answer[0].get("Content-Length", "")
        if not size.isdigit():
            raise UserError(
                f"{where}: the server does not say how large the file is; fetch the folder and name it here"
            )
        version = answer[0].get("ETag") or answer[0].get("Last-Modified") or ""
        return RemoteSnapshot(*profile, where, int(size), version)

    with ThreadPoolExecutor(_PARALLEL) as pool:
        try:
            answers = list(pool.map(ask, names))
        except BaseException:
            pool.shutdown(cancel_futures=True)  # a dead server would otherwise be asked for every name
            raise
    return {name: answer for name, answer in zip(names, answers, strict=True) if answer is not None}


def _request(url: str, method: str, *, read: bool = False) -> tuple[Message, bytes] | None:
    """An answer's headers, and its text if wanted; None where there is nothing. Raises UserError where the server cannot be asked."""
    if not is_url(url):
        raise UserError(f"{url!r} is not an address; write http://... or https://...")
    headers = {"User-Agent": "autoguidance", "Accept-Encoding": "identity"}
    reason: object = ""
    for attempt in range(_TRIES):
        try:
            request = urllib.request.Request(url, method=method, headers=headers)
            with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as answer:
                return answer.headers, answer.read(_PAGE_BYTES) if read else b""
        except urllib.error.HTTPError as error:
            error.close()
            if error.code in (403, 404, 410):
                return None
            if error.code in (405, 501) and method == "HEAD":
                return _request(url, "GET")  # closed unread
            reason = f"the server answers {error.code} {error.reason}"
            if error.code < 500 and error.code != 429:
                break
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error or type(error).__name__
        except ValueError as error:  # an address that urllib cannot read, such as a port that is no number
            raise UserError(f"{url!r} is not an address ({error}); check it") from None
        if attempt < _TRIES - 1:
            time.sleep(PAUSE_SECONDS * 2**attempt)
    raise UserError(f"cannot reach {url}: {reason}; check the address and the connection, then run it again")
