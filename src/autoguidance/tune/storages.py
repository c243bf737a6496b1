"""Where a shared search lies: a journal file, an SQLite file or a PostgreSQL database, opened for Optuna.

Problem: what the user names is a path or a URL with a password in it; what comes back on trouble is any of a hundred
exceptions of four libraries. Here a name becomes an Optuna storage with a title that is fit to print, and every
operation on it goes through `Store.call`, which tries again while the trouble may pass (a locked file, a full disk, a
server that restarts) and otherwise ends in one line.

Optuna decides between "finished" and "failed" by reading a trial's state and then writing it. On PostgreSQL it locks the
row for that; on SQLite it does not, so two processes could both find "running", and the later one would overwrite a
finished trial. Therefore every SQLite transaction here takes the write lock when it begins (BEGIN IMMEDIATE). A
transaction takes milliseconds. The rollback journal stays (no write-ahead log): it works on more file systems, and the
database remains one file that can be copied.
"""

import errno
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, quote_plus

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from sqlalchemy import Connection, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    IntegrityError,
    InterfaceError,
    NoSuchModuleError,
    OperationalError,
    SQLAlchemyError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout

from autoguidance.errors import UserError
from autoguidance.storage import make_folder
from autoguidance.tune.journal import TornJournal

T = TypeVar("T")

PATIENCE_SECONDS = 120.0
OPENING_SECONDS = 20.0
_JOURNALS = (".jsonl", ".log")
_DATABASES = (".db", ".sqlite", ".sqlite3")
_CHOICES = "FILE.jsonl or FILE.log (a journal), FILE.db (SQLite), or postgresql://USER:PASSWORD@HOST/DATABASE"
_NEVER_PASSES = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.ENOTDIR, errno.ENOLCK)
_NEVER_PASSES += (errno.EOPNOTSUPP, errno.ENOSYS)
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
# Two workers that create the tables at once: the slower one finds them there at the next try. And a server that restarts.
_PASSES_SOON = re.compile(
    r"already exists|duplicate key|unique constraint|locked|deadlock|starting up|shutting down|not yet accepting",
    re.IGNORECASE,
)
_NEVER_PASSES_TEXT = re.compile(r"readonly|read-only|unable to open|not a database|malformed|no such", re.IGNORECASE)


class Store:
    """An Optuna storage, and how to speak of it.

    Attributes:
        storage: Optuna's.
        title: name without password.

    Args:
        secrets: texts that must not appear in messages.
        patience_seconds: how long an operation is tried again.
    """

    def __init__(
        self,
        storage: BaseStorage,
        title: str,
        *,
        secrets: tuple[str, ...] = (),
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        self.storage = storage
        self.title = title
        self._secrets = secrets
        self._patience_seconds = patience_seconds

    def call(
        self,
        action: Callable[..., T],
        *arguments: Any,
        patience: float | None = None,
        stop: threading.Event | None = None,
    ) -> T:
        """action(*arguments), again and again while the trouble may pass.

        Args:
            patience: seconds; None: the store's.
            stop: when set, the trouble is raised at once.

        Raises: UserError where the storage cannot be used. Errors that are not the storage's pass through.
        """
        left = self._patience_seconds if patience is None else patience
        return _patiently(action, arguments, left, _may_pass, self.title, self._secrets, stop)

    def leave_thread(self) -> None:
        """Let go of what the calling thread holds: a database connection belongs to a thread."""
        if isinstance(self.storage, RDBStorage):
            self.storage.remove_session()

    def close(self) -> None:
        """Close all connections."""
        if isinstance(self.storage, RDBStorage):
            self.storage.remove_session()
            self.storage.engine.dispose()


def open_store(name: str | Path, *, patience_seconds: float = PATIENCE_SECONDS) -> Store:
    """Open a storage, or create it.

    Args:
        name: FILE.jsonl, FILE.log, FILE.db, FILE.sqlite, FILE.sqlite3, sqlite:///FILE or postgresql://…
        patience_seconds: for operations later on.

    Raises: UserError in one line, without password, where that is not possible.
    """
    text = str(name)
    if "://" in text:
        return _open_url(text, patience_seconds)
    path = Path(name)
    if path.suffix.lower() in _JOURNALS:
        return _open_journal(path, patience_seconds)
    if path.suffix.lower() in _DATABASES:
        return _open_database(path, patience_seconds)
    raise UserError(f"--storage {text}: give {_CHOICES}")


@contextmanager
def quiet() -> Iterator[None]:
    """Without Optuna's remarks on what it opens; its level is put back."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(before, optuna.logging.WARNING))
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def _open_journal(path: Path, patience_seconds: float) -> Store:
    title = _prepared(path)
    storage = _opening(lambda: JournalStorage(TornJournal(path)), title, ())
    return Store(storage, title, patience_seconds=patience_seconds)


def _open_database(path: Path, patience_seconds: float) -> Store:
    title = _prepared(path)
    if "?" in title:
        raise UserError(f"--storage {path}: SQLite takes no '?' in a file's name; choose another")
    url = URL.create("sqlite", database=title).render_as_string(hide_password=False)
    storage = _opening(lambda: _open_sqlite(url), title, ())
    return Store(storage, title, patience_seconds=patience_seconds)


def _prepared(path: Path) -> str:
    make_folder(path.absolute().parent)
    if path.is_dir():
        raise UserError(f"--storage {path} is a folder; give {_CHOICES}")
    return str(path)


def _open_sqlite(url: str) -> RDBStorage:
    storage = RDBStorage(_as_template(url), engine_kwargs={"connect_args": {"timeout": 60}})

    # SQLAlchemy's recipe for transactions of one's own choice: the driver begins none, and we begin each.
    def connected(connection: Any, record: Any) -> None:
        connection.isolation_level = None
        connection.execute("PRAGMA synchronous=FULL")

    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    event.listen(storage.engine, "connect", connected)
    event.listen(storage.engine, "begin", begin)
    storage.engine.dispose()  # connections from before know nothing of this
    return storage


def _open_url(text: str, patience_seconds: float) -> Store:
    scheme = text.partition("://")[0]
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise UserError(f"--storage {scheme}://… is not a valid address; give {_CHOICES}") from None
    family = scheme.partition("+")[0]
    if family == "sqlite":
        if not url.database or url.database == ":memory:":
            raise UserError(
                f"--storage {scheme}://: a search in memory needs no storage; leave it out, or give {_CHOICES}"
            )
        return _open_database(Path(url.database), patience_seconds)
    if family not in ("postgresql", "postgres"):
        raise UserError(f"--storage {scheme}://…: give {_CHOICES}")
    driver = (
        scheme.partition("+")[2] or "psycopg"
    )  # what a URL without a driver means differs between SQLAlchemy's versions
    url = url.set(drivername=f"postgresql+{driver}")
    title = f"postgresql://{url.host or ''}{f':{url.port}' if url.port else ''}/{url.database or ''}"
    secrets = _secrets(url)
    rendered = _as_template(url.render_as_string(hide_password=False))
    options = {"pool_pre_ping": True, "connect_args": {"connect_timeout": 10} if driver == "psycopg" else {}}
    storage = _opening(lambda: RDBStorage(rendered, engine_kwargs=options), title, secrets)
    return Store(storage, title, secrets=secrets, patience_seconds=patience_seconds)


def _as_template(url: str) -> str:
    """RDBStorage fills in {SCHEMA_VERSION} by `str.format`: braces have to be doubled. (SQLAlchemy 2.1 has escaped those of a file's
    name already, 2.0 has not.)"""
    return url.replace("{", "{{").replace("}", "}}")


def _secrets(url: URL) -> tuple[str, ...]:
    values = [str(url.password)] if url.password else []
    for name, value in url.query.items():
        if "pass" in name.lower():
            values += [value] if isinstance(value, str) else list(value)
    return tuple({form for value in values for form in (value, quote(value), quote_plus(value), quote(value, safe=""))})


def _opening(action: Callable[[], T], title: str, secrets: tuple[str, ...]) -> T:
    with quiet():
        try:
            return _patiently(action, (), OPENING_SECONDS, _passes_soon, title, secrets, None)
        except (ImportError, NoSuchModuleError):
            raise UserError(
                f"--storage {title}: the database's driver is not installed; run `pip install 'psycopg[binary]'`"
            ) from None
        except RuntimeError as error:  # tables of another version of Optuna
            raise UserError(f"--storage {title}: {_words(error, secrets)}") from None


def _patiently(
    action: Callable[..., T],
    arguments: tuple[Any, ...],
    patience: float,
    passes: Callable[[BaseException], bool],
    title: str,
    secrets: tuple[str, ...],
    stop: threading.Event | None,
) -> T:
    deadline, pause = time.monotonic() + patience, 0.05
    while True:
        try:
            return action(*arguments)
        except (optuna.exceptions.StorageInternalError, SQLAlchemyError, OSError) as error:
            if isinstance(error, NoSuchModuleError):
                raise
            if not passes(_cause(error)) or time.monotonic() + pause > deadline or (stop is not None and stop.is_set()):
                raise _explain(error, title, secrets) from None
        wait = pause * random.uniform(0.5, 1.5)
        if stop is not None:
            stop.wait(wait)
        else:
            time.sleep(wait)
        pause = min(2 * pause, 5.0)


def _cause(error: BaseException) -> BaseException:
    """What Optuna wrapped."""
    return (error.__cause__ or error) if isinstance(error, optuna.exceptions.StorageInternalError) else error


def _passes_soon(error: BaseException) -> bool:
    """Trouble from another worker that opens the same storage at the same time, or from a server that restarts."""
    return isinstance(error, SQLAlchemyError) and bool(_PASSES_SOON.search(str(error)))


def _may_pass(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno not in _NEVER_PASSES
    if isinstance(error, IntegrityError) or (isinstance(error, DBAPIError) and error.connection_invalidated):
        return True
    broken = (OperationalError, InterfaceError, PoolTimeout)
    return isinstance(error, broken) and not _NEVER_PASSES_TEXT.search(str(error))


def _explain(error: BaseException, title: str, secrets: tuple[str, ...]) -> UserError:
    cause = _cause(error)
    if isinstance(cause, OSError):
        if cause.errno in _NO_LOCKS:
            return UserError(f"{title} lies on a file system without file locks; choose another, or a database")
        return UserError(
            f"cannot use {title}: {cause.strerror or cause}; check its permissions and the free disk space"
        )
    return UserError(
        f"cannot use {title}: {_words(cause, secrets)}; check that it is there, its rights, and who else uses it"
    )


def _words(error: BaseException, secrets: tuple[str, ...]) -> str:
    """An error's own words, without the statement that it followed, without passwords, and not too many."""
    text = str(error.orig if isinstance(error, DBAPIError) and error.orig is not None else error)
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, "***")
    return " ".join(text.split())[:300].rstrip(" .")
