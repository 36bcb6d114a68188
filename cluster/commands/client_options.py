"""Options of all commands that talk to a running service: its URL, the key to send and the certificates to
trust."""

from __future__ import annotations

import argparse
import ssl
from pathlib import Path

from cluster.commands.local_service.run_state import the_running_state, without_path
from cluster.config import environment

DEFAULT_URL = "http://127.0.0.1:8000"


def add_url_flag(parser: argparse.ArgumentParser) -> None:
    """Add the flag --url."""
    parser.add_argument(
        "--url", help=f"the service, without /v1 (default: the one that runs here, else {DEFAULT_URL})"
    )


def add_trust_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags --api-key-file and --ca-file.

    A key itself is never a flag, since every user of the host could read it.
    """
    parser.add_argument(
        "--api-key-file", metavar="FILE", type=Path, help="file with an API key (default: PHIMOE_API_KEY)"
    )
    add_ca_flag(parser)


def add_ca_flag(parser: argparse.ArgumentParser) -> None:
    """Add the flag --ca-file."""
    parser.add_argument(
        "--ca-file",
        metavar="FILE",
        type=Path,
        help="PEM certificates to trust with https, instead of the system's",
    )


def api_headers(file: Path | None) -> dict[str, str]:
    """The Authorization header of a client, from the file, else from PHIMOE_API_KEY, else none. Raises
    ValueError."""
    return _headers(_key_of(file) if file is not None else environment.own_api_key())


def admin_headers(file: Path | None) -> dict[str, str]:
    """The Authorization header of an operator, from the file, else from PHIMOE_ADMIN_KEY, else none. Raises
    ValueError."""
    return _headers(_key_of(file) if file is not None else environment.own_admin_key())


def verification(ca_file: Path | None) -> ssl.SSLContext | bool:
    """The certificates that a client trusts; True for the system's. Raises ValueError if the file has no
    certificate."""
    if ca_file is None:
        return True
    try:
        return ssl.create_default_context(cafile=str(ca_file))
    except (OSError, ssl.SSLError) as error:
        raise ValueError(f"ca-file is {str(ca_file)!r}, which cannot be used: {error}") from error


def service_url(url: str | None) -> str:
    """The given URL, else that of the service that runs on this host, else DEFAULT_URL; without `/v1`.

    Raises SeveralServicesError if no URL is given and several services run.
    """
    if url is None:
        state = the_running_state()
        url = DEFAULT_URL if state is None else state.url
    return without_path(url)


def _key_of(file: Path) -> str:
    """The first key of a file, which has the form of a service's key files. Error messages never contain the
    key."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read a key from {file}: {type(error).__name__}") from None
    entries = [entry for line in lines if (entry := line.partition("#")[0].strip())]
    if not entries:
        raise ValueError(f"{file} holds no key")
    return entries[0].rpartition(":")[2].strip()


def _headers(key: str | None) -> dict[str, str]:
    if key is None:
        return {}
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ValueError("the API key is not printable ASCII without spaces")
    return {"Authorization": f"Bearer {key}"}
