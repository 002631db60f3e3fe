"""Where the feedback of one `VAR` lies: a SQLite file below it, or the PostgreSQL database that a URL names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from .access import is_there, why
from .errors import StoreError
from .people import create_key, read_key

URL_VARIABLE = "INSTRUCTREC_FEEDBACK_URL"
KEY_VARIABLE = "INSTRUCTREC_FEEDBACK_KEY_FILE"


@dataclass(frozen=True)
class Location:
    """Where events and the key of user ids are.

    Attributes:
        folder: `VAR/feedback`.
        environment: where the two variables are looked up.
    """

    folder: Path
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ, repr=False)

    @classmethod
    def below(cls, var: Path) -> Location:
        """The location of a `VAR`."""
        return cls(var.absolute() / "feedback")

    @property
    def file(self) -> Path:
        """The embedded store."""
        return self.folder / "events.sqlite"

    @property
    def url_file(self) -> Path:
        """May hold the URL of another store; a file, for a command line shows its passwords to everybody."""
        return self.folder / "url"

    @property
    def key_file(self) -> Path:
        """The key of user ids."""
        named = self.environment.get(KEY_VARIABLE)
        return Path(named) if named else self.folder / "user-id.key"

    def key(self) -> bytes:
        """The key of user ids, made at first use unless the environment names one.

        Raises:
            StoreError: it cannot be read or made.
        """
        if not self.environment.get(KEY_VARIABLE) and not is_there(self.key_file):
            create_key(self.key_file)
        return read_key(self.key_file)

    def url(self) -> URL:
        """The store's URL: the environment's, else that of `url_file`, else the embedded file's.

        Raises:
            StoreError: it is no URL, or of a database that is not supported.
        """
        text, source = self.environment.get(URL_VARIABLE, "").strip(), f"the environment's {URL_VARIABLE}"
        if not text and is_there(self.url_file):
            text, source = self._content(self.url_file), str(self.url_file)
        if not text:
            return URL.create("sqlite+pysqlite", database=str(self.file))
        try:
            url = make_url(text)
        except (ArgumentError, ValueError):
            raise StoreError(f"{source} is no database URL (postgresql://user:password@host/database)") from None
        backend = url.get_backend_name()
        if backend == "sqlite":
            if not url.database or url.database == ":memory:":
                raise StoreError(f"{source} names a SQLite database without a file, which would end with the server")
            return url.set(drivername="sqlite+pysqlite")
        if backend in {"postgresql", "postgres"}:
            return url.set(drivername="postgresql+psycopg")
        raise StoreError(f"{source} names {backend}; feedback goes to SQLite or PostgreSQL")

    @property
    def name(self) -> str:
        """The store's URL as people may see it, without a password.

        Raises:
            StoreError: as `url`.
        """
        return self.url().difference_update_query(("password", "sslpassword")).render_as_string(hide_password=True)

    @staticmethod
    def _content(path: Path) -> str:
        try:
            return path.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise StoreError(f"{path} cannot be read: {why(error, path)}") from None
        except UnicodeDecodeError as error:
            raise StoreError(f"{path} cannot be read: {error}") from None
