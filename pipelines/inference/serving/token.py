"""The token that tells those who may ask from others; without Ray, for `ask` needs it too."""

import hashlib
import hmac
import os
import secrets
from pathlib import Path

from pipelines.errors import UserError

VARIABLE = "SALMONN_TOKEN"


def token_file() -> Path:
    """Return where the token of this user's servers on this machine is kept."""
    return Path.home() / ".salmonn" / "token"


def known_token(*, for_others: bool = False) -> str:
    """Return the token of SALMONN_TOKEN or of the file; empty where there is none.

    That of the file is this machine's, so it is not given to others.

    Raises:
        UserError: If others than its owner may read the file.
    """
    if token := os.environ.get(VARIABLE, ""):
        return token
    file = token_file()
    if for_others or not file.exists():
        return ""
    if file.stat().st_mode & 0o077:
        raise UserError(f"{file}: others may read the token; chmod 600 {file}, or remove it to have another one made")
    return file.read_text().strip()


def own_token() -> str:
    """Return the known token, made and written first where there is none. Raises as `known_token`."""
    if token := known_token():
        return token
    file, token = token_file(), secrets.token_urlsafe(32)
    file.parent.mkdir(mode=0o700, exist_ok=True)
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as opened:
        opened.write(token + "\n")
    return token


def digest_of(token: str) -> str:
    """Return what the server keeps instead of the token."""
    return hashlib.sha256(token.encode()).hexdigest()


def is_right(header: str, digest: str) -> bool:
    """Tell whether an Authorization header bears the token of this digest."""
    kind, _, token = header.partition(" ")
    return kind.lower() == "bearer" and hmac.compare_digest(digest_of(token.strip()), digest)
