"""Files from the network: whole or absent, resumable, and recognised again.

A download grows in `TARGET.part`; beside it `TARGET.part.json` says of which file at which address it is a part (the
server's ETag or date, and its size), so that a later call continues it only if it is still the same file. The whole
file is compared with the size that the server declared, and with a SHA-256 where one is known, and then renamed.
"""

import http.client
import os
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from autoguidance.errors import UserError
from autoguidance.storage import make_folder, read_json, sha256_file, write_json

ProgressCallback = Callable[[int, int, dict[str, Any]], None]
_TRIES = 5
_TIMEOUT_SECONDS = 30.0
_CHUNK = 1 << 20


def is_url(text: str) -> bool:
    """Whether a name is an address that `fetch` takes."""
    return text.startswith(("http://", "https://"))


def fetch(
    url: str,
    target: Path | str,
    *,
    sha256: str | None = None,
    size: int | None = None,
    progress: ProgressCallback | None = None,
    pause: float = 1.0,
) -> Path:
    """Download a file; what is there of it from before is not fetched again.

    Args:
        url: http:// or https://.
        target: the file to make. Where it exists it is returned as it is (after the SHA-256, if one is given, was compared).
        sha256: expected hash in hexadecimal; None: not known.
        size: expected number of bytes; None: what the server says.
        progress: called with (bytes done, bytes in all or 0, {}).
        pause: seconds before the second try; doubles with each further one.

    Returns: target.
    Raises: UserError where the address cannot be reached, the file is not what was expected, or the disk is full.
    """
    target = Path(target)
    if not is_url(url):
        raise UserError(f"{url!r} is not an address; write http://... or https://...")
    if target.exists():
        _check(target, url, sha256, size)
        return target
    make_folder(target.parent)
    part = target.with_name(f"{target.name}.part")
    for attempt in range(_TRIES):
        try:
            _continue(url, part, size, progress)
            break
        except urllib.error.HTTPError as error:
            if error.code == 416:  # what is there is no part of the file as it is now
                part.unlink(missing_ok=True)
            elif error.code < 500 and error.code != 429:
                raise UserError(f"{url}: the server answers {error.code} {error.reason}; check the name") from None
            reason: object = f"the server answers {error.code} {error.reason}"
        except (OSError, http.client.HTTPException) as error:
            local = not isinstance(error, (ConnectionError, TimeoutError, urllib.error.URLError))
            if isinstance(error, OSError) and error.errno is not None and local:
                raise UserError(f"cannot write {part}: {error.strerror}; check the free disk space") from None
            reason = getattr(error, "reason", None) or error or type(error).__name__
        if attempt == _TRIES - 1:
            raise UserError(
                f"cannot fetch {url}: {reason}; check the connection and run the same command again, which continues, or "
                "fetch the file elsewhere and give its path"
            )
        time.sleep(pause * 2**attempt)
    try:
        _check(part, url, sha256, size)
    except UserError:
        part.unlink(missing_ok=True)
        _about(part).unlink(missing_ok=True)
        raise
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    part.replace(target)
    _about(part).unlink(missing_ok=True)
    return target


def _about(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _check(path: Path, url: str, sha256: str | None, size: int | None) -> None:
    found = path.stat().st_size
    if size is not None and found != size:
        raise UserError(f"{path} has {found} bytes, {url} should have {size}; remove it and run again")
    if sha256 is not None and sha256_file(path) != sha256:
        raise UserError(f"{path} is not the file recorded for {url} (its SHA-256 differs); remove it and run again")


def _continue(url: str, part: Path, size: int | None, progress: ProgressCallback | None) -> None:
    """One try: append to the part what is missing. Raises what urllib raises; ConnectionError where the answer is short."""
    about: dict[str, Any] = {}
    if part.exists() and _about(part).exists():
        with suppress(UserError):
            about = read_json(_about(part))
    have = part.stat().st_size if part.exists() and about.get("url") == url and about.get("version") else 0
    request = urllib.request.Request(url, headers={"User-Agent": "autoguidance", "Accept-Encoding": "identity"})
    if have:
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", about["version"])
    with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as answer:
        if answer.status != 206:
            have = 0
        rest = int(answer.headers.get("Content-Length") or 0)
        total = have + rest if rest else 0
        if size is not None and total and total != size:
            raise UserError(f"{url} has {total} bytes, not the expected {size}; it is another file than the one known")
        free = shutil.disk_usage(part.parent).free
        if rest > free:
            raise UserError(f"{url} needs {rest >> 20} MiB more, {part.parent} has {free >> 20} MiB free; make room")
        version = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
        version = "" if version.startswith("W/") else version  # a weak tag does not promise the same bytes
        write_json(_about(part), {"url": url, "version": version, "size": total})
        with part.open("ab" if have else "wb") as file:
            while chunk := answer.read(_CHUNK):
                file.write(chunk)
                have += len(chunk)
                if progress is not None:
                    progress(have, max(total, have), {})
        if total and have != total:
            raise ConnectionError(f"the connection ended after {have} of {total} bytes")


def address(base: str, *parts: str) -> str:
    """An address below `base`; parts are quoted."""
    return "/".join([base.rstrip("/"), *(urllib.parse.quote(part) for part in parts)])


def exists(url: str) -> bool:
    """Whether the server has a file at this address (HEAD). Raises UserError where it cannot be asked."""
    request = urllib.request.Request(url, method="HEAD", headers={"User-Agent": "autoguidance"})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS):
            return True
    except urllib.error.HTTPError as error:
        if error.code in (403, 404):
            return False
        raise UserError(f"{url}: the server answers {error.code} {error.reason}; try again later") from None
    except (OSError, http.client.HTTPException) as error:
        raise UserError(f"cannot reach {url}: {getattr(error, 'reason', error)}; check the connection") from None
