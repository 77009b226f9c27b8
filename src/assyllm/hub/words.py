"""One line for everything that can go wrong between here and the hub, with no token in it."""

from __future__ import annotations

import os
import re
from typing import Any

from assyllm.artifacts import ArtifactError

_SECRETS = re.compile(
    r"hf_[A-Za-z0-9]{6,}|(?<=[Bb]earer )\S+|(?<=//)[^/\s@]+(?=@)|[?&](?:X-Amz-[\w-]+|Signature)=[^&\s]+"
)


class HubError(ArtifactError):
    """A model or file of the hub cannot be had; ``again`` says that a later try may succeed."""

    def __init__(self, line: str, again: bool = False, wait_s: float | None = None) -> None:
        super().__init__(line)
        self.again, self.wait_s = again, wait_s


class Unreachable(HubError):
    """The hub cannot be asked for now: no network, offline mode, or it is silent, failing or refusing requests."""


def without_secrets(text: str) -> str:
    """``text`` in one line, tokens, credentials in addresses and signatures replaced by ``***``."""
    from huggingface_hub import get_token

    token = get_token()
    if token:
        text = text.replace(token, "***")
    return _SECRETS.sub("***", " ".join(text.split()))


def endpoint() -> str:
    """The hub's address (``HF_ENDPOINT``)."""
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def explained(error: Exception, what: str, hub_id: str) -> HubError:
    """The line for an exception of the hub's client.

    Args:
        what: the model, or the model and file, that was asked for; the line begins with it.
        hub_id: whose terms a gated model's reader must accept.
    """
    import httpx2 as httpx
    from huggingface_hub import errors

    if isinstance(error, HubError):
        return error
    if isinstance(error, errors.HFValidationError):
        return HubError(f"{what}: {hub_id!r} is not a hub id, such as facebook/opt-125m")
    if isinstance(error, errors.OfflineModeIsEnabled):
        return Unreachable(f"{what}: not in the cache, and HF_HUB_OFFLINE is set")
    if isinstance(error, errors.GatedRepoError):
        return HubError(f"{what}: {_gated(hub_id)}")
    if isinstance(error, errors.RevisionNotFoundError):
        return HubError(f"{what}: the hub has no such revision")
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return HubError(f"{what}: the hub has no such file at this revision (404)")
    if isinstance(error, errors.HfHubHTTPError):
        return _status(error.response, what, hub_id)
    if isinstance(error, httpx.TooManyRedirects):
        return HubError(f"{what}: the hub's answer is a loop of redirects; check HF_ENDPOINT and proxies")
    if isinstance(error, httpx.TimeoutException):
        return Unreachable(f"{what}: the hub stopped answering", again=True)
    if isinstance(error, httpx.TransportError):
        return Unreachable(f"{what}: no connection to {without_secrets(endpoint())} ({_short(error)})", again=True)
    if isinstance(error, ValueError | TypeError | KeyError):
        address = without_secrets(endpoint())
        return HubError(f"{what}: the answer is not the hub's JSON; is {address} a hub, or a login page before it?")
    return HubError(f"{what}: {_short(error)}")


def _status(response: Any, what: str, hub_id: str) -> HubError:
    code = int(response.status_code)
    if code == 429:
        wait = response.headers.get("Retry-After", "").strip()
        seconds = float(wait) if wait.isdigit() else None
        asked = f", asks to wait {wait} s" if seconds is not None else ""
        return Unreachable(f"{what}: the hub refuses more requests for now (429{asked})", again=True, wait_s=seconds)
    if code in (401, 403):
        return HubError(f"{what}: {_gated(hub_id) if code == 403 else _private()} ({code})")
    if code == 404:
        return HubError(f"{what}: the hub has no such model, or a private one that HF_TOKEN must open (404)")
    if code == 408 or code >= 500:
        return Unreachable(f"{what}: the hub is failing ({code})", again=True)
    return HubError(f"{what}: the hub answers {code}")


def _gated(hub_id: str) -> str:
    from huggingface_hub import get_token

    held = "the token that is set has no access" if get_token() else "no token is set"
    page = f"{without_secrets(endpoint())}/{hub_id}"
    return f"gated: accept its terms on {page}, then set HF_TOKEN or `hf auth login` ({held})"


def _private() -> str:
    from huggingface_hub import get_token

    held = "the token that is set is not accepted" if get_token() else "no token is set"
    return f"private, gated or not there: set HF_TOKEN or `hf auth login` ({held})"


def _short(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return without_secrets(str(error))[:160] or type(error).__name__
