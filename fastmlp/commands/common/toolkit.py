"""Lazy imports of fastmlp.cnn, the feature extractor. No other command module imports it, since it needs PyTorch."""

from __future__ import annotations

from typing import Any

from fastmlp.errors import UnavailableError


def extraction_tools() -> Any:
    """Return the module fastmlp.cnn.toolkit; raise UnavailableError if it cannot be imported."""
    try:
        from fastmlp.cnn import toolkit
    except ModuleNotFoundError as error:
        if error.name == "fastmlp.cnn":
            raise UnavailableError(
                "extract needs an installed fastmlp; in the checkout, run: pip install -e '.[cnn]'"
            ) from error
        raise UnavailableError(f"extract needs PyTorch ({error}); install it with: pip install 'fastmlp[cnn]'") from error
    return toolkit


def open_extractor(data: bytes, name: str) -> Any:
    """Deserialize the feature extractor that is stored in a model trained on features of images."""
    extraction_tools()  # raises a clear error if PyTorch is missing
    from fastmlp.cnn.extractor import from_bytes

    return from_bytes(data, name)
