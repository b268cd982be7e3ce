"""Is the Hugging Face hub there? A name that has no address is not asked for five times, with pauses, before that is said."""

import socket
import urllib.request
from urllib.parse import urlsplit


def offline() -> bool:
    """Whether files can come from the local cache alone: told so (HF_HUB_OFFLINE), or the hub's host has no address here and no
    proxy is set that would know it."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return True
    if {"https", "all"} & urllib.request.getproxies().keys():
        return False
    try:
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, 443)
    except OSError:
        return True
    return False
