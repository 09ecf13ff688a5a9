"""Import of the feature extractor, fastmlp.cnn. No other file imports it, since it needs PyTorch."""

from __future__ import annotations

from typing import Any

from fastmlp.errors import UnavailableError


def extraction_tools() -> Any:
    """Return the module with the extractor's functions; raise UnavailableError if it cannot be imported."""
    try:
        from fastmlp.cnn import toolkit
    except ModuleNotFoundError as error:
        if error.name == "fastmlp.cnn":
            raise UnavailableError("extract needs an installation of fastmlp: pip install -e '.[cnn]'") from error
        raise UnavailableError(f"extract needs PyTorch ({error}); install it with: pip install 'fastmlp[cnn]'") from error
    return toolkit


def open_extractor(data: bytes, name: str) -> Any:
    """Return an extractor from its bytes, for models trained on features of images."""
    extraction_tools()  # first, for its error without PyTorch
    from fastmlp.cnn.extractor import from_bytes

    return from_bytes(data, name)
