"""Ed25519 signatures (RFC 8032) of the lines of audit.jsonl, by a private key that lies outside the folder of the run.

A line holds in `signature` that of its own bytes without this field, so that nobody without the key can write a line that counts. That
lines are gone from the end no signature shows; the head does.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlkit.errors import UserError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SIGNATURE = "signature"
Signer = Callable[[bytes], str]  # returns the signature in hexadecimal
HOW_TO_MAKE = "openssl genpkey -algorithm ed25519 -out audit.pem makes one, openssl pkey -in audit.pem -pubout its public part"


def load_signer(file: str | None, folder: Path) -> Signer | None:
    """Signs with the private key in `file` (PEM); None without one. folder: of the run, which the key must not lie in. Raises UserError."""
    if file is None:
        return None
    path = Path(file).expanduser().absolute()
    if path.resolve().is_relative_to(folder.expanduser().resolve()):
        raise UserError(f"report.audit_key={file} lies in the folder of the run, so that who can write that can sign; put it elsewhere")
    key: Ed25519PrivateKey = read_key(path, "report.audit_key", private=True)
    return lambda content: key.sign(content).hex()


def load_public_key(file: str) -> Ed25519PublicKey:
    """The public key in a PEM file. Raises UserError."""
    key: Ed25519PublicKey = read_key(Path(file).expanduser(), "--key", private=False)
    return key


def read_key(path: Path, name: str, *, private: bool) -> Any:
    """The Ed25519 key in a PEM file. Raises UserError where it cannot be read or is another one."""
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise UserError(f"{name} needs the package cryptography: python -m pip install 'rlkit[audit]'") from error
    kind, which = (ed25519.Ed25519PrivateKey, "private") if private else (ed25519.Ed25519PublicKey, "public")
    try:
        content = path.read_bytes()
        key = serialization.load_pem_private_key(content, None) if private else serialization.load_pem_public_key(content)
    except OSError as error:
        raise UserError(f"{name}={path} cannot be read ({error.strerror})") from error
    except (ValueError, TypeError) as error:  # another format, or encrypted by a password
        raise UserError(f"{name}={path} is not a {which} key in PEM without a password; {HOW_TO_MAKE}") from error
    if not isinstance(key, kind):
        raise UserError(f"{name}={path} is not an Ed25519 key; {HOW_TO_MAKE}")
    return key


def sign_row(row: Mapping[str, Any], sign: Signer | None) -> dict[str, Any]:
    """The row, with its signature where there is a key."""
    return {**row, **({SIGNATURE: sign(json.dumps(row).encode())} if sign else {})}


def is_signed(row: Mapping[str, Any], key: Ed25519PublicKey) -> bool:
    """Whether a row that was read from a line is signed by the private part of `key`."""
    from cryptography.exceptions import InvalidSignature

    content = {name: value for name, value in row.items() if name != SIGNATURE}
    try:
        key.verify(bytes.fromhex(row[SIGNATURE]), json.dumps(content).encode())
    except (InvalidSignature, KeyError, ValueError, TypeError):
        return False
    return True
