"""The feature extractor, fastmlp.cnn: the one file that imports it, since it needs PyTorch."""

from __future__ import annotations

from typing import Any

from fastmlp.errors import UnavailableError


def extraction_tools() -> Any:
    """The extractor's functions, or an error that tells what to install."""
    try:
        from fastmlp.cnn import toolkit
    except ModuleNotFoundError as error:
        if error.name == "fastmlp.cnn":
            raise UnavailableError("extract needs fastmlp installed, not just its folder: pip install -e '.[cnn]'") from error
        raise UnavailableError(f"extract needs PyTorch ({error}); install it with: pip install 'fastmlp[cnn]'") from error
    return toolkit


def open_extractor(data: bytes, name: str) -> Any:
    """An extractor from its bytes, for models that take features of images."""
    extraction_tools()  # first: without PyTorch the next line would raise what looks like a bug of ours
    from fastmlp.cnn.extractor import from_bytes

    return from_bytes(data, name)
